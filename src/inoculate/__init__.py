"""Make language models hard to turn harmful by fine-tuning, and measure honestly how hard."""
