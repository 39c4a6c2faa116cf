"""How a person without a key gets one."""
