"""What helm prints, and the values file that it reads."""
