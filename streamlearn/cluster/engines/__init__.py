"""What runs the processes of a cluster, one engine a module (see streamlearn.cluster.engine)."""
