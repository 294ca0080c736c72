"""The scheduler: what it sees, which nodes a pod fits, whom it may displace, and the loop that decides."""
