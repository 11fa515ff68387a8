//! Claims about consents.
