"""What two processes must agree on: errors, specs, tensors, messages, their bytes, and topics. No I/O."""
