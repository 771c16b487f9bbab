"""How many files of many kinds are read rightly, and how fast a folder of them is indexed."""
