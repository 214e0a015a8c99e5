//! The data channel: batches from the spool to a server, acknowledgements back.
//!
//! [`core`] decides, [`session`] moves bytes of one connection, and here connections follow each
//! other for ever. A lane that the server holds, or that has no credit, costs the others nothing:
//! lanes take turns by batch.

pub mod core;
pub mod session;

use std::rc::Rc;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use skein_observe::names;
use skein_wire::hello::ChannelKind;

use self::session::Ended;
use crate::link::{Dialer, Redial};
use crate::spool::Spool;

/// A session that lived this long was a success: the next failure starts with a short wait.
const SUCCESS: Duration = Duration::from_secs(30);

/// Keeps the data channel up, for as long as the process lives. To be spawned on the thread of the
/// spool.
pub async fn run(spool: Rc<Spool>, dialer: Dialer) {
    let mut redial = Redial::default();
    loop {
        let wait = match dialer.connect(ChannelKind::Data).await {
            Ok(link) => {
                let (server, session) = (link.server.clone(), link.session_id);
                tracing::info!(%server, session, "data channel up");
                gauge!(names::AGENT_CONNECTED, "kind" => "data").set(1.0);
                let started = Instant::now();
                let ended = session::run(&spool, link.io).await;
                gauge!(names::AGENT_CONNECTED, "kind" => "data").set(0.0);
                counter!(names::AGENT_DATA_SESSION_ENDS, "reason" => ended.kind()).increment(1);
                tracing::info!(%server, session, reason = %ended, "data channel ended");
                if started.elapsed() >= SUCCESS {
                    redial.reset();
                }
                match ended {
                    Ended::GoAway { reconnect_after_ms } => {
                        redial.after_session(reconnect_after_ms)
                    }
                    _ => redial.after_session(0),
                }
            }
            Err(error) => {
                let wait = redial.after(&error);
                tracing::debug!(%error, ?wait, "no data channel");
                wait
            }
        };
        tokio::time::sleep(wait).await;
    }
}
