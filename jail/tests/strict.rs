mod support;
use support::*;
#[test]
fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = start_with(&helper(), sh("id; ls -la / /etc /dev /proc; cat /proc/self/mountinfo; cat /proc/self/status; ls -la ~; cat /proc/1/environ; ps aux"), |spec| {
        spec.isolation = jail::Isolation::Strict(jail::View { uid: Some(30001), ..Default::default() });
        spec.tmp = "/tmp".into();
    });
    let _ = dir;
    while let Some(r) = run.next() { println!("{r:?}"); }
    println!("{}", run.output());
    panic!();
}
