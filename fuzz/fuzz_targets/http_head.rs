//! Requests to the proxy of a jail, and on port 80. The head that goes on must read as the one that was checked.
#![no_main]

use egress::parse::http::{self, Body, MAX_HEAD, Target};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let request = match http::read(bytes) {
        Ok(Some(request)) => request,
        Ok(None) => return assert!(bytes.len() < MAX_HEAD),
        Err(_) => return,
    };
    assert!(request.length <= bytes.len().min(MAX_HEAD));
    let (Target::Connect(to) | Target::Absolute(to) | Target::Origin(to)) = &request.target;
    if matches!(request.target, Target::Connect(_)) {
        assert!(request.onward.is_empty() && request.body == Body::Length(0));
        return;
    }
    let again = http::read(&request.onward).expect("what goes on is a request").expect("a whole one");
    assert_eq!(again.length, request.onward.len(), "one head, and nothing behind it");
    assert_eq!(again.target, Target::Origin(to.clone()));
    assert_eq!(again.body, request.body);
    assert!(again.credentials.is_none());
});
