"""What models this machine has: finding them, naming them, describing them without loading them."""
