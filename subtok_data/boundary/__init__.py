"""The boundary model: the only place that touches a device."""
