"""What a training step left in `.grad`: judged by what rounding may do, named, and watched from inside the loop."""
