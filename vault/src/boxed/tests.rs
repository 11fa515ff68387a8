//! Claims about HPKE as we use it.
