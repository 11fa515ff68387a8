//! What servers ask of their clients, whose turn it is, and what they say outside of calls.

use tokio::task::yield_now;

use super::*;
use crate::audience::Audience;
use crate::masking::Masking;
use crate::mcp::caller::{Caller, Ear, Question, Said};
use crate::mcp::client::InFlight;
use crate::mcp::handshake::Offers;
use crate::mcp::tuning::{begin, tune};
use crate::service::door::Serves;

/// One call of a session, and what its caller is told meanwhile.
struct Side {
    call: InFlight,
    said: mpsc::Receiver<Said>,
}

impl Side {
    async fn asked(&mut self) -> (Value, Question) {
        match timeout(SOON, self.said.recv()).await.expect("in time") {
            Some(Said::Ask(question)) => (serde_json::from_slice(&question.request).expect("json"), question),
            Some(Said::Event(event)) => panic!("no question: {event:?}"),
            None => panic!("the call is over"),
        }
    }

    async fn event(&mut self) -> Value {
        match timeout(SOON, self.said.recv()).await.expect("in time") {
            Some(Said::Event(event)) => serde_json::from_slice(&event).expect("json"),
            Some(Said::Ask(question)) => panic!("no event: {:?}", question.request),
            None => panic!("the call is over"),
        }
    }

    fn is_quiet(&mut self) -> bool {
        self.said.try_recv().is_err()
    }
}

fn call(w: &World, session: Option<&str>, asks: bool) -> Side {
    let (sink, said) = mpsc::channel(8);
    let ear = Some(Ear { sink, events: true, asks });
    let caller = Caller { session: session.map(Arc::from), ear };
    Side { call: w.client.call("tools/call", None, caller).expect("taken"), said }
}

/// Waits until the connection knows whatever it was told before; nothing else has come of that.
async fn told_all(w: &mut World) {
    w.client.tell("notifications/barrier", None);
    assert_eq!(w.server.hear().await["method"], json!("notifications/barrier"));
}

const ELICIT: &str =
    r#"{"jsonrpc":"2.0","id":"e1","method":"elicitation/create","params":{ "message":"Name?" }}"#;

#[tokio::test]
async fn a_question_reaches_the_caller_and_the_answer_the_server_byte_for_byte() {
    let mut w = world(Limits::default());
    let mut side = call(&w, Some("a"), true);
    let asked = w.server.hear().await;
    w.server.say(ELICIT).await;
    let (_, question) = side.asked().await;
    assert_eq!(question.request, r#"{"method":"elicitation/create","params":{ "message":"Name?" }}"#);
    question.reply.answer(b"\"result\":{ \"n\" :\n 1e400 }".to_vec());
    assert_eq!(
        w.server.hear_line().await,
        "{\"jsonrpc\":\"2.0\",\"id\":\"e1\",\"result\":{ \"n\" :  1e400 }}\n"
    );
    w.server.say(r#"{"id":7,"method":"sampling/createMessage","params":{}}"#).await;
    let (_, question) = side.asked().await;
    question.reply.answer(br#""error":{"code":-1,"message":"no"}"#.to_vec());
    let refused = w.server.hear().await;
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(7), &json!(-1)));
    w.server.reply(&asked, json!("done")).await;
    assert_eq!(text(answer(&mut side.call).await), "\"done\"");
}

#[tokio::test]
async fn outside_of_calls_and_where_nobody_answers_there_are_no_roots_and_nothing_else() {
    let mut w = world(Limits::default());
    let mut silent = None;
    for _ in 0..2 {
        w.server.say(r#"{"id":1,"method":"roots/list"}"#).await;
        assert_eq!(w.server.hear().await["result"], json!({"roots": []}));
        w.server.say(ELICIT).await;
        assert_eq!(w.server.hear().await["error"]["code"], json!(-32601));
        w.server.say(r#"{"id":2,"method":"tasks/list"}"#).await;
        assert_eq!(w.server.hear().await["error"]["code"], json!(-32601));
        if silent.is_none() {
            silent = Some(call(&w, Some("a"), false));
            w.server.hear().await;
        }
    }
    assert!(silent.is_some_and(|mut side| side.is_quiet()));
}

#[tokio::test]
async fn a_question_ends_with_its_call_however_that_ends() {
    let mut w = world(Limits::default());
    for is_cancelled in [true, false] {
        let mut side = call(&w, Some("a"), true);
        let asked = w.server.hear().await;
        w.server.say(ELICIT).await;
        let (_, question) = side.asked().await;
        if is_cancelled {
            side.call.cancel("the deadline has passed");
            assert_eq!(w.server.hear().await["method"], json!("notifications/cancelled"));
        } else {
            w.server.reply(&asked, json!("without it")).await;
            answer(&mut side.call).await.expect("answered");
        }
        // Who holds the question drops it when its call is over.
        drop(question);
        let told = w.server.hear().await;
        assert_eq!((&told["id"], &told["error"]["code"]), (&json!("e1"), &json!(-32603)));
    }
}

#[tokio::test]
async fn a_question_moves_to_another_call_of_its_session_when_the_first_one_ends() {
    let mut w = world(Limits::default());
    let (mut old, mut new) = (call(&w, Some("a"), true), call(&w, Some("a"), true));
    w.server.hear().await;
    let asked = w.server.hear().await;
    w.server.say(ELICIT).await;
    let (_, question) = new.asked().await;
    assert!(old.is_quiet(), "the newest is asked");
    w.server.reply(&asked, json!("done")).await;
    answer(&mut new.call).await.expect("answered");
    drop(question);
    let (_, question) = old.asked().await;
    question.reply.answer(b"\"result\":{}".to_vec());
    assert_eq!(w.server.hear().await["result"], json!({}));
}

#[tokio::test]
async fn a_question_that_is_withdrawn_or_answered_late_changes_nothing() {
    let mut w = world(Limits::default());
    let mut side = call(&w, Some("a"), true);
    w.server.hear().await;
    w.server.say(ELICIT).await;
    let (_, question) = side.asked().await;
    w.server.say(r#"{"method":"notifications/cancelled","params":{"requestId":"e1"}}"#).await;
    w.server.say(r#"{"id":1,"method":"ping"}"#).await;
    assert_eq!(w.server.hear().await["id"], json!(1));
    question.reply.answer(b"\"result\":{}".to_vec());
    told_all(&mut w).await;
}

#[tokio::test]
async fn questions_are_bounded_in_number_and_a_caller_that_does_not_read_is_not_waited_for() {
    let mut w = world(Limits::default());
    let (sink, mut said) = mpsc::channel(100);
    let ear = Some(Ear { sink, events: false, asks: true });
    let _call = w.client.call("x", None, Caller { session: None, ear }).expect("taken");
    w.server.hear().await;
    let mut questions = vec![];
    for n in 0..32 {
        w.server.say(&format!(r#"{{"id":{n},"method":"roots/list"}}"#)).await;
        questions.push(timeout(SOON, said.recv()).await.expect("in time").expect("asked"));
    }
    w.server.say(r#"{"id":32,"method":"roots/list"}"#).await;
    assert_eq!(w.server.hear().await["error"]["code"], json!(-32603));
    drop(questions);
    for _ in 0..32 {
        assert_eq!(w.server.hear().await["error"]["code"], json!(-32603));
    }
    let (sink, _unread) = mpsc::channel(1);
    let ear = Some(Ear { sink, events: false, asks: true });
    let mut w = world(Limits::default());
    let _call = w.client.call("y", None, Caller { session: None, ear }).expect("taken");
    w.server.hear().await;
    for n in 0..2 {
        w.server.say(&format!(r#"{{"id":{n},"method":"roots/list"}}"#)).await;
    }
    let refused = w.server.hear().await;
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(1), &json!(-32603)));
}

#[tokio::test]
async fn secrets_are_masked_in_a_question() {
    let masking = Masking::new(vault::Redactor::new([b"canary-0123".as_slice()]), true);
    let mut w = world_with(Limits::default(), masking);
    let mut side = call(&w, Some("a"), true);
    w.server.hear().await;
    w.server
        .say(r#"{"id":1,"method":"elicitation/create","params":{"message":"is canary-0123 right?"}}"#)
        .await;
    let (request, _question) = side.asked().await;
    assert_eq!(request["params"]["message"], json!("is [secret] right?"));
}

#[tokio::test]
async fn after_a_question_that_could_be_two_sessions_they_take_turns_first_come_first_served() {
    let mut w = world(Limits::default());
    let (mut a, mut b) = (call(&w, Some("a"), true), call(&w, Some("b"), true));
    let (a_asked, b_asked) = (w.server.hear().await, w.server.hear().await);
    for _ in 0..2 {
        w.server.say(ELICIT).await;
        let error = w.server.hear().await["error"].clone();
        assert_eq!(error["code"], json!(-32603));
        assert!(error["message"].as_str().is_some_and(|why| why.contains("several sessions")), "{error}");
    }
    assert!(a.is_quiet() && b.is_quiet());
    let turns = || logged(&w, Stream::Runner).iter().filter(|line| line.contains("take turns")).count();
    assert_eq!(turns(), 1, "said once");
    // In the order in which they came: b's second call does not overtake a's.
    let mut waiting = [call(&w, Some("a"), true), call(&w, Some("a"), true), call(&w, Some("b"), true)];
    w.server.reply(&a_asked, json!(1)).await;
    answer(&mut a.call).await.expect("answered");
    w.server.say(r#"{"id":1,"method":"ping"}"#).await;
    assert_eq!(w.server.hear().await["id"], json!(1), "b's call still runs");
    w.server.reply(&b_asked, json!(1)).await;
    answer(&mut b.call).await.expect("answered");
    let (first, second) = (w.server.hear().await, w.server.hear().await);
    w.server.say(ELICIT).await;
    let (_, question) = waiting[1].asked().await;
    // What a is asked it may find out with another call, although b waits.
    let mut nested = call(&w, Some("a"), true);
    let nested_asked = w.server.hear().await;
    w.server.reply(&nested_asked, json!(1)).await;
    answer(&mut nested.call).await.expect("answered");
    question.reply.answer(b"\"result\":{}".to_vec());
    assert_eq!(w.server.hear().await["id"], json!("e1"));
    let late = call(&w, Some("a"), true);
    for asked in [&first, &second] {
        w.server.reply(asked, json!(1)).await;
    }
    let b_asked = w.server.hear().await;
    w.server.say(ELICIT).await;
    let (_, question) = waiting[2].asked().await;
    question.reply.answer(b"\"result\":{}".to_vec());
    w.server.hear().await;
    drop(late);
    told_all(&mut w).await;
    w.server.reply(&b_asked, json!(1)).await;
    let [mut a1, mut a2, mut b1] = waiting;
    for side in [&mut a1, &mut a2, &mut b1] {
        answer(&mut side.call).await.expect("answered");
    }
    w.server.say(r#"{"id":2,"method":"ping"}"#).await;
    assert_eq!(
        w.server.hear().await["id"],
        json!(2),
        "a call that was given up while it waited was never sent"
    );
}

#[tokio::test]
async fn what_waits_for_its_turn_was_never_sent_and_hears_so() {
    let mut w = world(Limits::default());
    let (mut a, _b) = (call(&w, Some("a"), true), call(&w, Some("b"), true));
    let asked = w.server.hear().await;
    w.server.hear().await;
    w.server.say(ELICIT).await;
    w.server.hear().await;
    let mut waiting = call(&w, Some("a"), true);
    w.client.close();
    assert_eq!(answer(&mut waiting.call).await, Err(CallError::NotSent));
    w.server.reply(&asked, json!(1)).await;
    answer(&mut a.call).await.expect("what runs goes on");
}

#[tokio::test]
async fn log_messages_reach_the_one_session_that_calls_once_and_otherwise_who_listens() {
    let mut w = world(Limits::default());
    let audience = Arc::new(Audience::default());
    w.client.play_to(Some(audience.clone()));
    let listen = |level: &str| wire::runner::Listen { resources: vec![], log_level: Some(level.to_owned()) };
    let mut a_listens = audience.join(listen("info"), Some(Arc::from("a")), None).expect("a seat");
    let mut b_listens = audience.join(listen("debug"), Some(Arc::from("b")), None).expect("a seat");
    let message = |level: &str, n: i32| {
        json!({"method": "notifications/message", "params": {"level": level, "data": n}}).to_string()
    };
    w.server.say(&message("info", 1)).await;
    for listener in [&mut a_listens, &mut b_listens] {
        let event = timeout(SOON, listener.next()).await.expect("in time").expect("told");
        assert_eq!(event, message("info", 1));
    }
    let (mut first, mut second) = (call(&w, Some("a"), false), call(&w, Some("a"), false));
    let asked = w.server.hear().await;
    let given_up_too = w.server.hear().await;
    w.server.say(&message("debug", 2)).await;
    w.server.say(&message("error", 3)).await;
    assert_eq!(second.event().await["params"]["data"], json!(3), "2 is less than what it asked for");
    let other = call(&w, Some("b"), false);
    let given_up = w.server.hear().await;
    w.server.say(&message("error", 4)).await;
    w.server.reply(&asked, json!(1)).await;
    answer(&mut first.call).await.expect("answered");
    assert!(first.is_quiet() && second.is_quiet());
    drop((second, other));
    for _ in 0..2 {
        assert_eq!(w.server.hear().await["method"], json!("notifications/cancelled"));
    }
    // Of what was cancelled; until the server is done with that, too.
    w.server.say(&message("error", 5)).await;
    for asked in [&given_up, &given_up_too] {
        w.server.reply(asked, json!(1)).await;
    }
    w.server.say(&message("error", 6)).await;
    for listener in [&mut a_listens, &mut b_listens] {
        let event = timeout(SOON, listener.next()).await.expect("in time").expect("told");
        assert_eq!(event, message("error", 6), "not what others' calls brought about");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_cancelled_call_asks_reaches_no_other_session() {
    let mut w = world(Limits::default());
    let a = call(&w, Some("a"), true);
    let mut asked = w.server.hear().await;
    let mut b = call(&w, Some("b"), true);
    w.server.hear().await;
    drop(a);
    assert_eq!(w.server.hear().await["method"], json!("notifications/cancelled"));
    w.server.say(ELICIT).await;
    assert_eq!(w.server.hear().await["error"]["code"], json!(-32603));
    assert!(b.is_quiet());
    // Its late answer is the end of it; without one, time is.
    for is_answered in [true, false] {
        if is_answered {
            w.server.reply(&asked, json!("too late")).await;
        } else {
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        w.server.say(ELICIT).await;
        let (_, question) = b.asked().await;
        question.reply.answer(b"\"result\":{}".to_vec());
        assert_eq!(w.server.hear().await["result"], json!({}));
        if is_answered {
            // Now they take turns: what was cancelled is still its session's.
            b.call.cancel("enough");
            assert_eq!(w.server.hear().await["method"], json!("notifications/cancelled"));
            b = call(&w, Some("c"), true);
            told_all(&mut w).await;
            tokio::time::advance(Duration::from_secs(10)).await;
            asked = w.server.hear().await;
            assert_eq!(asked["method"], json!("tools/call"));
        }
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_in_the_line_lets_those_behind_it_go() {
    let mut w = world(Limits::default());
    let (_a, _b) = (call(&w, Some("a"), true), call(&w, Some("b"), true));
    let asked = w.server.hear().await;
    w.server.hear().await;
    w.server.say(ELICIT).await;
    w.server.hear().await;
    w.server.reply(&asked, json!(1)).await;
    let (given_up, _next) = (call(&w, Some("c"), true), call(&w, Some("b"), true));
    told_all(&mut w).await;
    drop(given_up);
    assert_eq!(w.server.hear().await["method"], json!("tools/call"), "b's session runs");
    assert_eq!(w.client.queued_bytes(), 0, "what was never sent waits no more");
}

#[tokio::test]
async fn questions_that_are_withdrawn_count_until_their_caller_has_let_go_of_them() {
    let mut w = world(Limits::default());
    let (sink, mut said) = mpsc::channel(100);
    let ear = Some(Ear { sink, events: false, asks: true });
    let _call = w.client.call("x", None, Caller { session: None, ear }).expect("taken");
    w.server.hear().await;
    let mut kept = vec![];
    for _ in 0..32 {
        w.server.say(ELICIT).await;
        kept.push(timeout(SOON, said.recv()).await.expect("in time").expect("asked"));
        w.server.say(r#"{"method":"notifications/cancelled","params":{"requestId":"e1"}}"#).await;
    }
    w.server.say(ELICIT).await;
    assert_eq!(w.server.hear().await["error"]["code"], json!(-32603));
    kept.clear();
    told_all(&mut w).await;
    w.server.say(ELICIT).await;
    let _kept = timeout(SOON, said.recv()).await.expect("in time").expect("asked");
    let large = format!(r#"{{"id":2,"method":"roots/list","params":{{"x":"{}"}}}}"#, "x".repeat(4 << 20));
    w.server.say(&large).await;
    let refused = w.server.hear().await;
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(2), &json!(-32603)));
}

#[tokio::test]
async fn an_instance_that_does_not_play_is_not_heard() {
    let mut w = world(Limits::default());
    let audience = Arc::new(Audience::default());
    let listen = wire::runner::Listen { resources: vec!["u".to_owned()], log_level: None };
    let mut listener = audience.join(listen, None, None).expect("a seat");
    let updated =
        |n: i32| json!({"method": "notifications/resources/updated", "params": {"n": n, "uri": "u"}});
    w.server.say(&updated(1).to_string()).await;
    w.server.say(r#"{"id":1,"method":"ping"}"#).await;
    w.server.hear().await;
    w.client.play_to(Some(audience.clone()));
    w.server.say(&updated(2).to_string()).await;
    let event = timeout(SOON, listener.next()).await.expect("in time").expect("told");
    assert_eq!(event, updated(2).to_string());
}

#[tokio::test]
async fn a_legacy_server_is_subscribed_once_for_all_and_unsubscribed_after_the_last() {
    let w = world(Limits::default());
    let audience = Arc::new(Audience::default());
    let listen = |uris: &[&str], level: Option<&str>| wire::runner::Listen {
        resources: uris.iter().map(|&uri| uri.to_owned()).collect(),
        log_level: level.map(str::to_owned),
    };
    let first = audience.join(listen(&["a", "b"], Some("error")), None, None).expect("a seat");
    let offers = Offers { resources: true, subscribe: true, logging: true, ..Offers::default() };
    let (client, mut server) = (w.client.clone(), w.server);
    let mut player = audience.play(Serves::Everybody);
    let begun = begin(&client, offers, &mut player);
    let tuning = tune(&client, offers, &mut player, begun, |said| panic!("{said}"));
    let mut hear = async |method: &str, value: &str| {
        let asked = server.hear().await;
        let name = if method == "logging/setLevel" { "level" } else { "uri" };
        assert_eq!((&asked["method"], &asked["params"]), (&json!(method), &json!({ name: value })));
        server.reply(&asked, json!({})).await;
    };
    let script = async {
        hear("resources/subscribe", "a").await;
        hear("resources/subscribe", "b").await;
        hear("logging/setLevel", "error").await;
        first.tuned().await;
        let second = audience.join(listen(&["b", "c"], Some("info")), None, None).expect("a seat");
        hear("resources/subscribe", "c").await;
        hear("logging/setLevel", "info").await;
        second.tuned().await;
        drop(first);
        hear("resources/unsubscribe", "a").await;
        // The least level is still the second one's, so nothing is said of it.
        let _third = audience.join(listen(&["d"], Some("alert")), None, None).expect("a seat");
        hear("resources/subscribe", "d").await;
    };
    tokio::select! {
        () = tuning => panic!("the connection is open"),
        () = script => {}
    }
}

/// Answers, and waits until the answer was read.
async fn end(server: &mut Server, asked: &Value) {
    server.reply(asked, json!({})).await;
    server.say(r#"{"id":0,"method":"ping"}"#).await;
    assert_eq!(server.hear().await["id"], json!(0));
}

#[tokio::test]
async fn a_modern_server_is_asked_anew_before_the_old_request_is_cancelled() {
    let w = world(Limits::default());
    w.client.require_meta(vec![]);
    let audience = Arc::new(Audience::default());
    let offers = Offers { tools: true, changes: true, resources: true, ..Offers::default() };
    let (client, mut server) = (w.client.clone(), w.server);
    let mut player = audience.play(Serves::Everybody);
    let begun = begin(&client, offers, &mut player);
    let tuning = tune(&client, offers, &mut player, begun, |said| panic!("{said}"));
    let script = async {
        let first = server.hear().await;
        assert_eq!(first["method"], json!("subscriptions/listen"));
        let lists = json!({"toolsListChanged": true, "resourcesListChanged": true});
        assert_eq!(first["params"]["notifications"], lists);
        let listen = wire::runner::Listen { resources: vec!["u".to_owned()], log_level: Some("info".into()) };
        let listener = audience.join(listen, None, None).expect("a seat");
        let second = server.hear().await;
        assert_eq!(second["params"]["notifications"]["resourceSubscriptions"], json!(["u"]));
        let cancelled = server.hear().await;
        assert_eq!(cancelled["params"]["requestId"], first["id"]);
        listener.tuned().await;
        drop(listener);
        let third = server.hear().await;
        assert_eq!(third["params"]["notifications"], lists);
        assert_eq!(server.hear().await["params"]["requestId"], second["id"]);
        // One that the server has ended is not cancelled, and another one may follow.
        end(&mut server, &third).await;
        for uri in ["v", "w"] {
            let listen = wire::runner::Listen { resources: vec![uri.to_owned()], log_level: None };
            let listener = audience.join(listen, None, None).expect("a seat");
            let asked = server.hear().await;
            assert_eq!(asked["params"]["notifications"]["resourceSubscriptions"], json!([uri]));
            end(&mut server, &asked).await;
            drop(listener);
            let asked = server.hear().await;
            assert_eq!(asked["params"]["notifications"], lists);
            end(&mut server, &asked).await;
        }
    };
    tokio::select! {
        () = tuning => panic!("the connection is open"),
        () = script => {}
    }
}

#[tokio::test]
async fn tuning_ends_with_the_connection() {
    let w = world(Limits::default());
    let audience = Arc::new(Audience::default());
    let mut player = audience.play(Serves::Everybody);
    let client = w.client.clone();
    let begun = begin(&client, Offers::default(), &mut player);
    let tuning = tune(&client, Offers::default(), &mut player, begun, |_| {});
    let ending = async {
        yield_now().await;
        client.close();
    };
    timeout(SOON, async { tokio::join!(tuning, ending) }).await.expect("ends");
}
