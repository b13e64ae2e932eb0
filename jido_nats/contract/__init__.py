"""The contract as JSON Schema, AsyncAPI and conformance rules."""
