//! The side of `skein-agent emit`: plain blocking code, because it has one thing to do.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::wire::{self, FromServer, MESSAGE_BYTES_MAX, Malformed, RECORD_BYTES_MAX};
use crate::home::Home;

/// Records are sent together up to about this many bytes.
const REQUEST_BYTES: usize = 128 * 1024;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EmitReport {
    /// Lines read.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Lines that are in the agent's spool for certain.
    pub acknowledged: u64,
    /// Lines longer than a record may be: their ends are missing.
    pub cut: u64,
}

/// Why not everything was acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    /// No agent.
    #[error("cannot reach the agent at {0}: {1}; is it running, with this home?")]
    Connect(PathBuf, io::Error),
    /// Standard input.
    #[error("cannot read the input: {0}")]
    Input(io::Error),
    /// The agent said no.
    #[error("the agent refused: {0}")]
    Refused(String),
    /// The agent ended.
    #[error("the agent ended before everything was acknowledged: {0}")]
    Ended(io::Error),
}

/// Sends the lines of standard input to lane `data_id` of the agent at `home` and says on standard
/// error what came of it. Fails unless every line was acknowledged.
pub fn emit_stdin(home: &Path, data_id: u32) -> Result<EmitReport, EmitError> {
    let (report, ended) = emit(home, data_id, io::stdin().lock());
    let cut = match report.cut {
        0 => String::new(),
        cut => format!(", {cut} cut at {RECORD_BYTES_MAX} bytes"),
    };
    // Whoever closed standard error does not want to know.
    let _ = writeln!(
        io::stderr(),
        "{} records, {} bytes, {} acknowledged{cut}",
        report.records,
        report.bytes,
        report.acknowledged
    );
    ended.map(|()| report)
}

/// Sends the lines of `input`; see [`emit_stdin`]. The report is true also when it fails.
pub fn emit(home: &Path, data_id: u32, input: impl BufRead) -> (EmitReport, Result<(), EmitError>) {
    let mut report = EmitReport::default();
    let path = Home::new(home).run().join(super::SOCKET_NAME);
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) => return (report, Err(EmitError::Connect(path, error))),
    };
    let flow = Flow::default();
    let sent = std::thread::scope(|scope| {
        scope.spawn(|| flow.listen(&stream));
        let sent = send(&stream, data_id, input, &flow, &mut report);
        if sent.is_err() {
            // Wakes the listener; what is unanswered stays so.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        sent
    });
    let state = flow.lock();
    report.acknowledged = state.acknowledged;
    let ended = match (sent, &state.ended) {
        (Err(EmitError::Input(error)), _) => Err(EmitError::Input(error)),
        (_, Some(Ended::Refused(text))) => Err(EmitError::Refused(text.clone())),
        (Err(error), _) => Err(error),
        (Ok(()), _) if report.acknowledged == report.records => Ok(()),
        (Ok(()), _) => Err(EmitError::Ended(io::ErrorKind::UnexpectedEof.into())),
    };
    (report, ended)
}

/// What the sending and the listening thread share.
#[derive(Default)]
struct Flow {
    state: Mutex<FlowState>,
    moved: Condvar,
}

#[derive(Default)]
struct FlowState {
    /// Agreed with the agent; 0 until it is ready.
    window_bytes: u64,
    /// Requests without an answer: (number, records, bytes).
    open: VecDeque<(u64, u64, u64)>,
    open_bytes: u64,
    acknowledged: u64,
    ended: Option<Ended>,
}

enum Ended {
    Closed,
    Refused(String),
}

impl Flow {
    fn lock(&self) -> MutexGuard<'_, FlowState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the agent's answers until it closes.
    fn listen(&self, stream: &UnixStream) {
        let ended = loop {
            match self.listen_once(stream) {
                Ok(None) => {}
                Ok(Some(text)) => break Ended::Refused(text),
                Err(_) => break Ended::Closed,
            }
            self.moved.notify_all();
        };
        self.lock().ended = Some(ended);
        self.moved.notify_all();
    }

    fn listen_once(&self, mut stream: &UnixStream) -> io::Result<Option<String>> {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let bytes = u32::from_be_bytes(length) as usize;
        let malformed = |error: Malformed| io::Error::new(io::ErrorKind::InvalidData, error);
        if bytes > MESSAGE_BYTES_MAX {
            return Err(malformed(Malformed));
        }
        let mut payload = vec![0; bytes];
        stream.read_exact(&mut payload)?;
        let mut state = self.lock();
        match wire::decode_from_server(&payload).map_err(malformed)? {
            FromServer::Ready { window_bytes } => state.window_bytes = window_bytes.into(),
            FromServer::Refused(text) => return Ok(Some(text.to_owned())),
            FromServer::Kept { request } => {
                while let Some((_, records, bytes)) =
                    state.open.pop_front_if(|(number, ..)| *number <= request)
                {
                    state.acknowledged += records;
                    state.open_bytes -= bytes;
                }
            }
        }
        Ok(None)
    }

    /// Waits until `bytes` more may be open.
    fn admit(&self, request: u64, records: u64, bytes: u64) -> Result<(), EmitError> {
        let mut state = self.lock();
        loop {
            if state.ended.is_some() {
                return Err(EmitError::Ended(io::ErrorKind::BrokenPipe.into()));
            }
            if state.window_bytes > 0 && state.open_bytes + bytes <= state.window_bytes {
                state.open.push_back((request, records, bytes));
                state.open_bytes += bytes;
                return Ok(());
            }
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wait_for_all(&self) {
        let mut state = self.lock();
        while state.ended.is_none() {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn send(
    mut stream: &UnixStream,
    data_id: u32,
    mut input: impl BufRead,
    flow: &Flow,
    report: &mut EmitReport,
) -> Result<(), EmitError> {
    let mut write = |bytes: &[u8]| stream.write_all(bytes).map_err(EmitError::Ended);
    write(&wire::open(data_id))?;
    let mut request = Request::default();
    let mut line = Vec::new();
    let mut end = false;
    while !end {
        line.clear();
        let (got, more) = read_line(&mut input, &mut line, report)?;
        if got {
            report.records += 1;
            report.bytes += line.len() as u64;
            if request.body.len() + line.len() > REQUEST_BYTES {
                request.send(flow, &mut write)?;
            }
            wire::put_record(&line, &mut request.body);
            request.records += 1;
        }
        end = !got;
        // Nothing more at hand: the next read may wait for a long time.
        if end || !more {
            request.send(flow, &mut write)?;
        }
    }
    write(&wire::end())?;
    flow.wait_for_all();
    Ok(())
}

/// Records that travel together.
#[derive(Default)]
struct Request {
    number: u64,
    records: u64,
    body: Vec<u8>,
}

impl Request {
    fn send(
        &mut self,
        flow: &Flow,
        write: &mut impl FnMut(&[u8]) -> Result<(), EmitError>,
    ) -> Result<(), EmitError> {
        if self.records == 0 {
            return Ok(());
        }
        flow.admit(self.number, self.records, self.body.len() as u64)?;
        write(&wire::records(self.number, &self.body))?;
        self.number += 1;
        self.records = 0;
        self.body.clear();
        Ok(())
    }
}

/// Reads one line without its end; says whether there was one and whether more is at hand.
fn read_line(
    input: &mut impl BufRead,
    line: &mut Vec<u8>,
    report: &mut EmitReport,
) -> Result<(bool, bool), EmitError> {
    let mut any = false;
    let mut cut = false;
    loop {
        let available = match input.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(EmitError::Input(error)),
        };
        if available.is_empty() {
            report.cut += u64::from(cut);
            return Ok((any, false));
        }
        any = true;
        let newline = available.iter().position(|byte| *byte == b'\n');
        let part = &available[..newline.unwrap_or(available.len())];
        let room = RECORD_BYTES_MAX - line.len();
        cut |= part.len() > room;
        line.extend_from_slice(&part[..part.len().min(room)]);
        let taken = newline.map_or(part.len(), |at| at + 1);
        let more = taken < available.len();
        input.consume(taken);
        if newline.is_some() {
            report.cut += u64::from(cut);
            return Ok((true, more));
        }
    }
}
