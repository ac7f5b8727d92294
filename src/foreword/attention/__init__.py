"""How a prefix meets a forward pass: everything between a bound prefix and the kernel."""
