//! What this machine lets a strict jail be built of, a line each.

fn main() {
    for (primitive, result) in jail::probe() {
        let text = result.map_or_else(|refused| refused.to_string(), |()| "works".into());
        println!("{primitive:<18} {text}");
    }
}
