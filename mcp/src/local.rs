//! An MCP server of this machine, run here and lent to the mesh.
