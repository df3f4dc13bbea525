"""The paper: its equations as pure functions of tensors."""
