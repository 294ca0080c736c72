"""The scheduler: what it sees, which nodes a pod fits, which pods it may preempt, and the loop that decides."""
