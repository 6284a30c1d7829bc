"""What an agent imports: capture, outcomes, releases. Light: no thread, socket or producer before the first use."""
