"""The projected method: long gradients verified along random directions, confirmed wrong by single differences."""
