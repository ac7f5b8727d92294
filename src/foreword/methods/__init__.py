"""Ways to adapt a frozen backbone to a task."""
