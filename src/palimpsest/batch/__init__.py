"""Many runs of pages on one node or a cluster: which are due, on which GPU, and what a failure means."""
