//! What one TCP connection gets from host to host: the rate that a bound is computed with.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::Host;

/// Left out at the start: slow start, and the burst that HTB lets through.
const WARM_UP: Duration = Duration::from_millis(700);
/// What is measured.
const MEASURED: Duration = Duration::from_millis(1500);
/// A link that delivers nothing fails.
const SILENCE: Duration = Duration::from_secs(5);

/// Bytes per second that arrive, after the warm-up.
pub fn goodput(from: &Host, to: &Host) -> anyhow::Result<f64> {
    let listener = to.within(|| TcpListener::bind((to.address(), 0)))??;
    let address = listener.local_addr()?;
    let stream = from.within(|| TcpStream::connect_timeout(&address, SILENCE))??;
    let (incoming, _) = listener.accept()?;
    incoming.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let block = vec![0u8; 256 << 10];
            // Ends with an error when the receiver has seen enough.
            while (&stream).write_all(&block).is_ok() {}
        });
        // Dropped before the sender is waited for: unread bytes then reset its connection.
        let mut incoming = incoming;
        let mut block = vec![0u8; 256 << 10];
        let started = Instant::now();
        let (mut counted, mut since) = (0u64, None);
        loop {
            let bytes = incoming.read(&mut block)?;
            ensure!(bytes > 0, "the sender of a goodput measurement ended");
            let elapsed = started.elapsed();
            match since {
                None if elapsed >= WARM_UP => since = Some(Instant::now()),
                None => {}
                Some(since) => {
                    counted += bytes as u64;
                    let span = since.elapsed();
                    if span >= MEASURED {
                        return Ok(counted as f64 / span.as_secs_f64());
                    }
                }
            }
        }
    })
}
