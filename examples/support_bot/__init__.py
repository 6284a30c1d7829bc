"""A support bot whose outcome is that the customer kept the answer."""
