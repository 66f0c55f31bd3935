"""What the engines together offer."""
