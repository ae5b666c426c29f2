//! node-agent-maps
