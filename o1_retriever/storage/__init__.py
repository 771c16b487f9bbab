"""What all files that we write share: locks between threads and processes, and files that appear whole."""
