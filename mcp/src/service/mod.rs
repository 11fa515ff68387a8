//! One hosted service as one MCP server.
