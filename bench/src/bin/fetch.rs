//! `fetch HOST PORT`: for each path on stdin looks the host up, connects, gets it, and says nanoseconds and bytes of body.

use std::io::{BufRead as _, Error, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(host), Some(port)) = (args.next(), args.next()) else {
        return Err(Error::other("usage: fetch HOST PORT"));
    };
    let port: u16 = port.parse().map_err(Error::other)?;
    let mut buffer = vec![0; 256 << 10];
    for path in std::io::stdin().lock().lines() {
        let request = format!("GET {} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n", path?);
        let since = Instant::now();
        let mut connection = TcpStream::connect((host.as_str(), port))?;
        connection.write_all(request.as_bytes())?;
        let bytes = body(&mut connection, &mut buffer)?;
        writeln!(std::io::stdout(), "{} {bytes}", since.elapsed().as_nanos())?;
    }
    Ok(())
}

/// Bytes after the head, which a first answer brings whole.
fn body(connection: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut total = 0;
    let mut head = None;
    loop {
        let n = connection.read(buffer)?;
        if n == 0 {
            return Ok(total - head.unwrap_or(0));
        }
        if head.is_none() {
            let end = buffer[..n].windows(4).position(|four| four == b"\r\n\r\n");
            head = Some(end.ok_or_else(|| Error::other("no head came"))? + 4);
        }
        total += n;
    }
}
