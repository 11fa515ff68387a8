//! Pushes into an agent's session: `notifications/claude/channel`.
