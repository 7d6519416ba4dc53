"""NaN and infinite gradients: the operation whose backward makes them of finite ones, its line, and how."""
