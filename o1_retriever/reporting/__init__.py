"""What reports share: Markdown tables, HTML, counted nouns, and a list of problems. It knows texts alone."""
