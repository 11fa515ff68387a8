//! The whole mesh as one MCP server.
