"""What is lost, doubled or wrong on a hard day: one command per figure."""
