"""``python -m tools.catalogue``: writes the dated files of instance types and of list prices that the package ships."""
