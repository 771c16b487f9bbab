"""What thinking moved, as data, and what draws it for a terminal and for a notebook."""
