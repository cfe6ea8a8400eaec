"""The coordinator: a user's job from request to end, step by step, each step safe to run again after a crash."""
