//! The last known lists of each service on this machine's disk, for when the broker is away.
