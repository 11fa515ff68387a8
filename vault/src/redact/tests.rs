//! Claims about masking.

use super::*;

const SECRET: &str = "pa/ss\"wörd\n+?&🔑ende";

fn redactor(secrets: &[&str]) -> Redactor {
    Redactor::new(secrets.iter().map(|secret| secret.as_bytes()))
}

#[test]
fn nothing_to_look_for_changes_nothing() {
    for none in [redactor(&[]), redactor(&["", "short", "1234567"]), Redactor::default()] {
        assert!(none.is_empty());
        assert!(matches!(none.mask(b"short 1234567"), Cow::Borrowed(b"short 1234567")));
        assert_eq!(none.tail(b"1234567"), 0);
    }
    assert!(!redactor(&["12345678"]).is_empty());
    assert!(matches!(redactor(&["12345678"]).mask(b"1234567"), Cow::Borrowed(_)));
}

#[test]
fn every_form_in_which_programs_write_a_value_is_masked() {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    let json = serde_json::to_string(SECRET).unwrap();
    let json = &json[1..json.len() - 1];
    let twice = serde_json::to_string(json).unwrap();
    let hex = hex::encode(SECRET);
    let forms = [
        SECRET.to_owned(),
        json.to_owned(),
        twice[1..twice.len() - 1].to_owned(),
        json.replace('/', "\\/"),
        SECRET.replace('/', "\\/"),
        // Python's json.dumps.
        "pa/ss\\\"w\\u00f6rd\\n+?&\\ud83d\\udd11ende".to_owned(),
        // The same in a text of the protocol.
        "pa/ss\\\\\\\"w\\\\u00f6rd\\\\n+?&\\\\ud83d\\\\udd11ende".to_owned(),
        // encodeURIComponent, urllib's quote and urlencode, curl's --data-urlencode in lowercase.
        "pa%2Fss%22w%C3%B6rd%0A%2B%3F%26%F0%9F%94%91ende".to_owned(),
        "pa/ss%22w%C3%B6rd%0A%2B%3F%26%F0%9F%94%91ende".to_owned(),
        "pa%2fss%22w%c3%b6rd%0a%2b%3f%26%f0%9f%94%91ende".to_owned(),
        hex.clone(),
        hex.to_uppercase(),
    ];
    let redactor = redactor(&[SECRET]);
    for form in forms {
        assert_eq!(redactor.mask_text(&format!("x{form}y")), "x[secret]y", "{form}");
    }
    for engine in [&STANDARD, &URL_SAFE] {
        assert_eq!(redactor.mask_text(&engine.encode(SECRET)), "[secret]");
        for before in 0..3 {
            let around = engine.encode(format!("{}{SECRET}{}", &"abc"[..before], "xyz"));
            let masked = redactor.mask_text(&around).into_owned();
            // Of the border's characters stays what is not the secret's alone.
            let left = masked.replace(MASK, "");
            assert!(masked.contains(MASK) && left.len() <= 4 + 6, "{before}: {around} became {masked}");
        }
    }
    let with_space = self::redactor(&["open sesame now"]);
    assert_eq!(with_space.mask_text("q=open+sesame+now&r=open%20sesame%20now"), "q=[secret]&r=[secret]");
}

#[test]
fn bytes_that_are_no_text_are_masked() {
    let secret: Vec<u8> = (0..=255).rev().collect();
    let redactor = Redactor::new([secret.as_slice()]);
    assert_eq!(redactor.mask(&[b"a", secret.as_slice(), b"z"].concat()).as_ref(), b"a[secret]z");
    assert_eq!(redactor.mask_text(&hex::encode(&secret)), "[secret]");
    assert_eq!(redactor.mask_text("plain"), "plain");
}

#[test]
fn of_overlapping_secrets_nothing_is_left() {
    let redactor = redactor(&["abcdefgh12", "gh12345678", "abcdefgh"]);
    assert_eq!(redactor.mask_text("-abcdefgh12345678-"), "-[secret]-");
    assert_eq!(redactor.mask_text("abcdefgh1 abcdefgh12"), "[secret]1 [secret]");
    assert_eq!(redactor.mask_text("abcdefghabcdefgh"), "[secret][secret]");
}

#[test]
fn a_line_of_a_longer_secret_is_a_secret_when_it_is_long_enough() {
    let key = "-----BEGIN KEY-----\r\nMIIEvQIBADANBgkqhkiG9w0B\r\nshort/line\r\n\"quoted line, long\"\n";
    let redactor = redactor(&[key]);
    assert_eq!(redactor.mask_text("got MIIEvQIBADANBgkqhkiG9w0B"), "got [secret]");
    assert_eq!(redactor.mask_text("got short/line"), "got short/line");
    assert_eq!(redactor.mask_text(r#"{"a":"\"quoted line, long\"."}"#), r#"{"a":"[secret]."}"#);
    assert_eq!(redactor.mask_text(key), "[secret]");
}

#[test]
fn a_mask_in_json_leaves_json() {
    let redactor = redactor(&["12345678", "\"a\": \"bbbb\"", "nTOKENTOKEN", "u00e9é-ééé", "de00-token"]);
    for (text, expected) in [
        (r#"{"n": 9912345678.5e3, "m": [-12345678]}"#, r#"{"n": "[secret]", "m": ["[secret]"]}"#),
        (r#"{"a": "bbbb", "c": true}"#, r#"{"[secret]": "[secret]", "c": true}"#),
        (r#"{"x": "\nTOKENTOKEN"}"#, r#"{"x": "[secret]"}"#),
        (r#"{"x": "\\nTOKENTOKEN"}"#, r#"{"x": "\\[secret]"}"#),
        (r#"["\ud83d\ude00-token"]"#, r#"["[secret]"]"#),
        (r#" "12345678" "#, r#" "[secret]" "#),
        (
            r#"{"x": "1234567812345678", "y": null, "z": false}"#,
            r#"{"x": "[secret][secret]", "y": null, "z": false}"#,
        ),
    ] {
        let masked = redactor.mask_text(text);
        assert_eq!(masked, expected);
        serde_json::from_str::<serde_json::Value>(&masked).expect("still JSON");
    }
}

#[test]
fn what_only_begins_like_json_is_masked_as_text() {
    let redactor = redactor(&["ghp_TOKEN1", "12345678"]);
    for (text, expected) in [
        ("[info] token=ghp_TOKEN1", "[info] token=[secret]"),
        ("{ghp_TOKEN1}", "{[secret]}"),
        ("\"ghp_TOKEN1", "\"[secret]"),
        ("[\"a\\", "[\"a\\"),
        ("{\"a\": \"ghp_TOKEN1\\", "{\"a\": \"[secret]\\"),
        ("12345678", "[secret]"),
        ("[1, 2] ghp_TOKEN1", "[1, 2] [secret]"),
    ] {
        assert_eq!(redactor.mask_text(text), expected);
    }
}

/// As a pump of a stream does it.
fn in_chunks(redactor: &Redactor, text: &[u8], sizes: &[usize]) -> Vec<u8> {
    let (mut out, mut held, mut rest) = (Vec::new(), Vec::new(), text);
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at((*sizes.next().expect("cycle")).clamp(1, rest.len()));
        rest = after;
        held.extend_from_slice(chunk);
        let keep = redactor.tail(&held);
        let kept = held.split_off(held.len() - keep);
        out.extend_from_slice(&redactor.mask(&held));
        held = kept;
    }
    out.extend_from_slice(&redactor.mask(&held));
    out
}

#[test]
fn a_secret_over_chunk_borders_is_masked_wherever_it_is_cut() {
    let redactor = redactor(&[SECRET, "abcdefgh", "ghXXXXXXXXXXXXXXXXXXXXXX"]);
    let hex = hex::encode(SECRET);
    let text = format!("a {SECRET} b {hex} c abcdefghXXXXXXXXXXXXXXXXXXXXXX d abcdefghX abcdefg");
    let whole = redactor.mask_text(&text).into_owned();
    assert_eq!(whole, "a [secret] b [secret] c [secret] d [secret]X abcdefg");
    for size in 1..=text.len() {
        assert_eq!(in_chunks(&redactor, text.as_bytes(), &[size]), whole.as_bytes(), "chunks of {size}");
    }
}

#[test]
fn nothing_is_held_back_but_what_may_be_a_secret() {
    let redactor = redactor(&["abcdefgh-bbcdefgh-bbcdefgh"]);
    assert_eq!(redactor.tail(b"hello abcdefgX"), 0);
    assert_eq!(redactor.tail(b"hello a"), 1);
    assert_eq!(redactor.tail(b"hello abcdefgh-bbcdefgh-b"), 19);
    assert_eq!(redactor.tail(b"abcdefgh-bbcdefgh-bbcdefgh."), 0);
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(&mut next).take(len).collect()
}

#[test]
fn a_large_file_is_found_in_base64_in_one_line_and_in_many() {
    let secret = noise(wire::vault::MAX_FILE_VALUE);
    let redactor = Redactor::new([secret.as_slice()]);
    let blob = crate::framing::to_base64(&secret);
    let text = format!("{{\"blob\":\"{blob}\"}}");
    assert_eq!(redactor.mask_text(&text), "{\"blob\":\"[secret]\"}");
    for width in [64, 76] {
        let wrapped: Vec<_> = blob.as_bytes().chunks(width).collect();
        let masked = redactor.mask(&wrapped.join(&b'\n')).into_owned();
        let mut lines = masked.split(|b| *b == b'\n').rev();
        assert!(lines.next().is_some_and(|last| last.len() < 16), "of the last line");
        assert!(lines.all(|line| line == MASK.as_bytes()), "broken into lines of {width}");
    }
}

#[test]
fn what_a_program_reads_in_a_secret_that_is_json_is_a_secret() {
    let key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----\n";
    let file = serde_json::json!({"private_key": key, "uri": "https://accounts.example/o/oauth2", "n": [{"s": "deep-secret-deep-secret"}], "short": "abcdefgh"});
    let redactor = redactor(&[&file.to_string()]);
    assert_eq!(redactor.mask_text(key), MASK);
    assert_eq!(redactor.mask_text("got MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"), "got [secret]");
    assert_eq!(redactor.mask_text("deep-secret-deep-secret"), MASK);
    assert_eq!(
        redactor.mask_text("https://accounts.example/o/oauth2 abcdefgh"),
        "https://accounts.example/o/oauth2 abcdefgh"
    );
}

#[test]
fn the_work_is_bounded_by_the_text_and_a_text_that_needs_more_is_masked_as_a_whole() {
    let long = "a".repeat(64 << 10);
    let redactor = redactor(&[&long, &format!("{long}b"), &format!("{}c", "a".repeat(99))]);
    let text = format!("x{}", "a".repeat(256 << 10));
    let begun = std::time::Instant::now();
    assert_eq!(redactor.mask_text(&text), MASK);
    assert_eq!(redactor.mask_text(&format!("[\"{text}\", 1]")), "[\"[secret]\", \"[secret]\"]");
    // In the square of the length it takes minutes.
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn a_redactor_shows_nothing() {
    assert_eq!(format!("{:?}", redactor(&[SECRET])), "[redactor]");
}

mod any {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn pieces_are_masked_like_the_whole(
            secrets in prop::collection::vec("[ab]{8,30}", 1..4),
            text in "[abc]{0,200}",
            sizes in prop::collection::vec(1_usize..40, 1..5),
        ) {
            let redactor = Redactor::new(secrets.iter().map(String::as_bytes));
            let whole = redactor.mask(text.as_bytes()).into_owned();
            prop_assert_eq!(in_chunks(&redactor, text.as_bytes(), &sizes), whole.clone());
            let whole = String::from_utf8(whole).unwrap();
            for secret in &secrets {
                prop_assert!(!whole.contains(secret.as_str()));
            }
        }

        #[test]
        fn json_stays_json_and_loses_the_secret(
            secret in "[ -~]{8,20}|[0-9]{8,12}|[\"\\\\nu{}:, 0-9dé🔑]{8,20}",
            before in "[\"\\\\nu0-9d😀]{0,6}",
            number in any::<i64>(),
        ) {
            let value = serde_json::json!({
                "a": format!("{before}{secret}{before}"), &secret: [number, secret.parse::<u64>().ok()],
            });
            let redactor = Redactor::new([secret.as_bytes()]);
            let text = value.to_string();
            let masked = redactor.mask_text(&text);
            prop_assert!(serde_json::from_str::<serde_json::Value>(&masked).is_ok(), "{text} became {masked}");
            // A value such as `":[[],[],"` may be found in the syntax, which stays.
            if secret.bytes().all(|b| b.is_ascii_alphanumeric()) {
                prop_assert!(!masked.contains(&secret), "{text} became {masked}");
            }
        }

        #[test]
        fn random_text_is_no_trouble(text in ".{0,80}", json in "[\\[{\"][\\[{}\\]\":,0-9tfn\\\\u ]{0,40}") {
            let redactor = Redactor::new([&b"\"\"\"\"\"\"\"\""[..], b"00000000", b"{{{{{{{{"]);
            redactor.mask_text(&text);
            let masked = redactor.mask_text(&json).into_owned();
            let is_json = |text: &str| serde_json::from_str::<serde_json::Value>(text).is_ok();
            prop_assert!(!is_json(&json) || is_json(&masked), "{json} became {masked}");
        }
    }
}
