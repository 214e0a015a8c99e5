//! Sessions of a real data process over loopback: who may say what, and who is closed.
#![allow(clippy::unwrap_used)] // in helpers of tests

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Server, metric, until};
use skein_wire::fleet::v1 as fleet;
use skein_wire::fleet::v1::{from_data, to_data};
use skein_wire::frame;
use skein_wire::hello::{ChannelKind, Hello, HelloAck, HelloStatus};
use skein_wire::ids::Instance;
use skein_wire::limits::{ENROL_REQUEST_BYTES_MAX, PRE_AUTH_TIME_MS};
use skein_wire::prost::Message;
use skein_wire::signal::v1::{
    EnrolReply, EnrolRequest, Heartbeat, HeartbeatAck, HostFacts, Ping, ServerMessage,
    agent_message, server_message,
};

fn heartbeat(sequence: u64) -> agent_message::Kind {
    agent_message::Kind::Heartbeat(Heartbeat { sequence, agent_time_ms: 0 })
}

fn ack_of(kind: server_message::Kind) -> HeartbeatAck {
    match kind {
        server_message::Kind::HeartbeatAck(ack) => ack,
        other => panic!("not a heartbeat's answer: {other:?}"),
    }
}

#[test]
fn an_agent_enrols_without_a_certificate_and_can_say_nothing_else() {
    let server = Server::start();
    let mut control = server.registered();
    let (mut client, ack) = server.open(ChannelKind::Enrol, None, 1);
    assert_eq!(ack.status, HelloStatus::Ok);
    let request = EnrolRequest { token_id: "t".into(), ..Default::default() };
    let mut out = Vec::new();
    frame::encode_message(&request, ENROL_REQUEST_BYTES_MAX, &mut out).unwrap();
    client.send(&out);
    let asked = control.expect(|kind| matches!(kind, from_data::Kind::Enrol(_)));
    let from_data::Kind::Enrol(asked) = asked else { unreachable!() };
    assert_eq!(EnrolRequest::decode(asked.request).unwrap(), request);
    assert!(asked.remote_addr.starts_with("127.0.0.1:"));
    let reply = EnrolReply { agent_id: "a-7".into(), ..Default::default() };
    control.send(to_data::Kind::Enrol(fleet::EnrolAnswer {
        request_id: asked.request_id,
        reply: reply.encode_to_vec().into(),
    }));
    assert_eq!(client.frame::<EnrolReply>(), reply);
    client.closed();

    // Control is away: the agent is told so instead of waiting.
    drop(control);
    until("control's end is noticed", || {
        let (mut client, _) = server.open(ChannelKind::Enrol, None, 1);
        client.send(&out);
        client.frame::<EnrolReply>().error.contains("away")
    });

    for kind in [ChannelKind::Signal, ChannelKind::Data, ChannelKind::File] {
        let (mut client, ack) = server.open(kind, None, 1);
        assert_eq!(ack.status, HelloStatus::Unauthorised, "{kind:?}");
        client.closed();
    }
    server.process.stop().unwrap();
}

#[test]
fn heartbeats_are_answered_without_control_and_messages_pass_with_it() {
    let server = Server::start();
    let (mut agent, ack) = server.open(ChannelKind::Signal, Some(server.pki.agent("a", 2)), 1);
    assert_eq!(ack.status, HelloStatus::Ok);
    agent.say(heartbeat(7));
    assert_eq!(ack_of(agent.hear()).sequence, 7);

    let mut control = server.control();
    let from_data::Kind::Register(register) = control.next() else { panic!("register first") };
    assert_eq!(register.shards, 2);
    // Before or after the end of the snapshot: the link may have been faster than the agent.
    let up = control.session_up("a");
    assert_eq!((up.session_id, up.certificate_serial.as_str()), (ack.session_id, "02"));

    let facts = HostFacts { hostname: "h".repeat(100_000), ..Default::default() };
    agent.say(agent_message::Kind::Facts(facts.clone()));
    let from = control.expect(|kind| matches!(kind, from_data::Kind::FromAgent(_)));
    let from_data::Kind::FromAgent(from) = from else { unreachable!() };
    let message = skein_wire::signal::v1::AgentMessage::decode(from.message).unwrap();
    assert_eq!(message.kind, Some(agent_message::Kind::Facts(facts)));
    assert_eq!((from.agent_id.as_str(), from.session_id), ("a", ack.session_id));

    // One message to a living agent, one that does not exist: common and extra are joined.
    let ping = |payload: &'static [u8], nonce| ServerMessage {
        kind: Some(server_message::Kind::Ping(Ping { nonce, payload: payload.into() })),
    };
    let target = |agent: &str| fleet::Target {
        agent_id: agent.into(),
        extra: ping(b"", 9).encode_to_vec().into(),
    };
    control.send(to_data::Kind::ToAgents(fleet::ToAgents {
        dispatch_id: 5,
        common: ping(b"shared", 0).encode_to_vec().into(),
        targets: vec![target("a"), target("nobody"), target("not an id")],
    }));
    let expected = Ping { nonce: 9, payload: b"shared"[..].into() };
    assert_eq!(agent.hear(), server_message::Kind::Ping(expected));
    let missed = control.expect(|kind| matches!(kind, from_data::Kind::Undeliverable(_)));
    let from_data::Kind::Undeliverable(missed) = missed else { unreachable!() };
    assert_eq!(missed.dispatch_id, 5);
    assert_eq!(missed.agent_ids.len(), 2);

    // The link breaks: the session stays, and is told again.
    drop(control);
    agent.say(heartbeat(8));
    assert_eq!(ack_of(agent.hear()).sequence, 8);
    let mut control = server.control();
    assert_eq!(control.session_up("a").session_id, ack.session_id);
    drop(agent);
    assert_eq!(control.session_down("a").session_id, ack.session_id);
    server.process.stop().unwrap();
}

#[test]
fn a_second_instance_waits_until_the_first_is_gone_and_a_half_open_one_is_replaced() {
    let server = Server::start();
    let mut control = server.registered();
    let identity = || Some(server.pki.agent("twin", 3));
    let (mut first, ack) = server.open(ChannelKind::Signal, identity(), 1);
    assert_eq!(ack.status, HelloStatus::Ok);

    let (mut second, refused) = server.open(ChannelKind::Signal, identity(), 2);
    assert_eq!(refused.status, HelloStatus::IdentityInUse);
    assert!(refused.retry_after_ms > 0);
    second.closed();
    let conflict = control.expect(|kind| matches!(kind, from_data::Kind::Conflict(_)));
    let from_data::Kind::Conflict(conflict) = conflict else { unreachable!() };
    assert_eq!(conflict.agent_id, "twin");
    // The first is asked for a sign of life and gives one.
    assert!(matches!(first.hear(), server_message::Kind::Ping(_)));
    first.say(heartbeat(1));
    ack_of(first.hear());

    // The same instance on a new connection: the old one was half-open.
    let (mut again, replaced) = server.open(ChannelKind::Signal, identity(), 1);
    assert_eq!(replaced.status, HelloStatus::Ok);
    first.closed();
    again.say(heartbeat(2));
    ack_of(again.hear());
    drop(again);
    assert_eq!(control.session_down("twin").session_id, replaced.session_id);
    let (_third, ack) = server.open(ChannelKind::Signal, identity(), 2);
    assert_eq!(ack.status, HelloStatus::Ok);
    server.process.stop().unwrap();
}

#[test]
fn revocation_closes_every_channel_at_once_and_outlives_a_restart_of_control() {
    let server = Server::start();
    let mut control = server.registered();
    let bad = || Some(server.pki.agent("bad", 0x8f01));
    let good = || Some(server.pki.agent("good", 5));
    let (mut signal, _) = server.open(ChannelKind::Signal, bad(), 1);
    let (mut data, _) = server.open(ChannelKind::Data, bad(), 1);
    let (mut other, _) = server.open(ChannelKind::Signal, good(), 1);
    control.session_up("bad");
    control.send(to_data::Kind::Revoked(fleet::Revoked {
        agent_ids: vec![],
        certificate_serials: vec!["8F01".into()],
    }));
    signal.closed();
    data.closed();
    let (_, ack) = server.open(ChannelKind::Signal, bad(), 1);
    assert_eq!(ack.status, HelloStatus::Revoked);
    other.say(heartbeat(1));
    ack_of(other.hear());
    control.send(to_data::Kind::Close(fleet::CloseSession {
        agent_id: "good".into(),
        reason: "asked for".into(),
    }));
    other.closed();
    server.process.stop().unwrap();
}

/// Certificates that must open nothing: no longer or not yet valid, of another authority, signed
/// by itself, without an agent's name, without the use that a client needs.
#[test]
fn expired_foreign_and_nameless_certificates_are_refused_and_counted() {
    let server = Server::start();
    let foreign = common::Pki::new();
    let by_us = |change: fn(&mut rcgen::CertificateParams)| server.pki.agent_with("bad", change);
    let before = metric("skein_data_handshakes_total{result=\"failed\"}");
    let refused = [
        by_us(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1)),
        by_us(|params| params.not_before = rcgen::date_time_ymd(2999, 1, 1)),
        by_us(|params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        }),
        foreign.agent("bad", 1),
        common::self_signed("bad"),
    ];
    let handshakes = refused.len() * 3;
    for identity in refused {
        for kind in [ChannelKind::Signal, ChannelKind::Data, ChannelKind::File] {
            let identity = (identity.0.clone(), identity.1.clone_key());
            let mut client = server.connect(kind, Some(identity));
            // In TLS 1.3 a client learns of its refusal when it reads.
            let hello = Hello::new(kind, Instance([1; 16])).encode();
            let _ = client.stream.write_all(&hello);
            client.closed();
            assert!(client.buffer.is_empty(), "HELLO was answered");
        }
    }
    let failed = || metric("skein_data_handshakes_total{result=\"failed\"}") - before;
    assert!(failed() >= handshakes as f64, "{} of {handshakes}", failed());

    // A good certificate that names no agent passes TLS and opens nothing.
    let nameless = by_us(|params| params.distinguished_name = rcgen::DistinguishedName::new());
    let mut client = server.connect(ChannelKind::Signal, Some(nameless));
    client.send(&Hello::new(ChannelKind::Signal, Instance([1; 16])).encode());
    client.closed();
    assert!(client.buffer.is_empty());
    assert!(metric("skein_data_protocol_errors_total{kind=\"none\",error=\"identity\"}") >= 1.0);

    // The same with a certificate that is still valid, so the cases above fail for their reason.
    let valid = server.pki.agent_with("good", |params| {
        params.not_after = rcgen::date_time_ymd(2999, 1, 1);
    });
    let (_good, ack) = server.open(ChannelKind::Signal, Some(valid), 1);
    assert_eq!(ack.status, HelloStatus::Ok);
    server.process.stop().unwrap();
}

#[test]
fn garbage_oversize_and_foreign_versions_are_closed_and_counted() {
    let server = Server::start();
    for kind in [ChannelKind::Signal, ChannelKind::Data, ChannelKind::File] {
        // Not TLS.
        let mut raw = TcpStream::connect(server.port(kind)).unwrap();
        raw.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        raw.set_read_timeout(Some(common::PATIENCE)).unwrap();
        let mut rest = Vec::new();
        let _ = raw.read_to_end(&mut rest);
        assert!(rest.len() < 64, "an alert at most");
        // TLS, and then no HELLO.
        let mut client = server.connect(kind, Some(server.pki.agent("a", 2)));
        client.send(&[0x55; 64]);
        client.closed();
    }
    assert!(metric("skein_data_protocol_errors_total{kind=\"none\",error=\"tls\"}") >= 3.0);
    assert!(metric("skein_data_protocol_errors_total{kind=\"none\",error=\"bad_hello\"}") >= 3.0);

    let mut hello = Hello::new(ChannelKind::Signal, Instance([1; 16]));
    (hello.min_version, hello.max_version) = (9, 12);
    let mut client = server.connect(ChannelKind::Signal, Some(server.pki.agent("a", 2)));
    client.send(&hello.encode());
    let ack = HelloAck::decode(client.exactly(32)[..].try_into().unwrap()).unwrap();
    assert_eq!((ack.status, ack.version), (HelloStatus::Version, 0));

    let announce = |kind: ChannelKind, name: &str, bytes: &[u8]| {
        let (mut client, ack) = server.open(kind, Some(server.pki.agent(name, 2)), 1);
        assert_eq!(ack.status, HelloStatus::Ok);
        client.send(bytes);
        client.closed();
    };
    announce(ChannelKind::Signal, "o1", &[0x10, 0, 0, 0]); // 256 MiB
    announce(ChannelKind::Signal, "o2", &[0, 0, 0, 3, 0xff, 0xff, 0xff]);
    announce(ChannelKind::Data, "o3", &[1, 0xff, 0xff, 0xff]);
    announce(ChannelKind::Data, "o4", &[99, 0, 0, 0]);
    announce(ChannelKind::Data, "o5", &[[1, 0, 1, 0].as_slice(), &[7; 64]].concat());
    announce(ChannelKind::File, "o6", &[0; 200]);
    let (mut client, _) = server.open(ChannelKind::Enrol, None, 1);
    client.send(&[0, 1, 0, 0]);
    client.closed();
    for error in ["oversize", "malformed"] {
        for kind in ["signal", "data"] {
            let name =
                format!("skein_data_protocol_errors_total{{kind=\"{kind}\",error=\"{error}\"}}");
            until(&name, || metric(&name) >= 1.0);
        }
    }
    server.process.stop().unwrap();
}

#[test]
fn who_dribbles_before_authentication_is_closed_in_time_and_holds_little() {
    let server = Server::start();
    let begun = Instant::now();
    let dribblers: Vec<_> = [ChannelKind::Signal, ChannelKind::Data, ChannelKind::File]
        .map(|kind| TcpStream::connect(server.port(kind)).unwrap())
        .into_iter()
        .map(|mut stream| {
            std::thread::spawn(move || {
                stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                // A record of 16 KiB that never ends, byte by byte.
                let mut byte = [0x16, 3, 1, 0x40, 0].into_iter().chain(std::iter::repeat(1));
                loop {
                    let written = stream.write_all(&[byte.next().unwrap()]);
                    let mut answer = [0; 64];
                    match (written, stream.read(&mut answer)) {
                        (Err(_), _) | (_, Ok(0)) => return,
                        (_, Err(error)) if error.kind() != std::io::ErrorKind::WouldBlock => return,
                        _ => {}
                    }
                }
            })
        })
        .collect();
    // Inside TLS, a HELLO byte by byte.
    let in_tls: Vec<_> = [ChannelKind::Signal, ChannelKind::Data, ChannelKind::File]
        .map(|kind| server.connect(kind, Some(server.pki.agent("d", 6))))
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                for byte in Hello::new(ChannelKind::Signal, Instance([1; 16])).encode() {
                    let written = client.stream.write_all(&[byte]);
                    if written.and_then(|()| client.stream.flush()).is_err() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(300));
                }
                panic!("a HELLO that takes 9.6 s is read to its end");
            })
        })
        .collect();
    // An enrol channel that says HELLO and no more has the same time.
    let (mut silent, ack) = server.open(ChannelKind::Enrol, None, 1);
    assert_eq!(ack.status, HelloStatus::Ok);
    silent.closed();
    dribblers.into_iter().chain(in_tls).for_each(|dribbler| dribbler.join().unwrap());
    let took = begun.elapsed();
    let limit = Duration::from_millis(PRE_AUTH_TIME_MS);
    assert!(took >= limit && took < limit + Duration::from_secs(3), "{took:?}");
    server.process.stop().unwrap();
}

#[test]
fn a_silent_session_is_lost_after_its_misses() {
    let server = Server::start();
    let mut control = server.registered();
    control.send(to_data::Kind::Welcome(fleet::Welcome {
        heartbeat_interval_ms: 200,
        heartbeat_misses: 3,
    }));
    until("control's interval is told", || {
        let (mut probe, _) = server.open(ChannelKind::Signal, Some(server.pki.agent("p", 9)), 1);
        probe.say(heartbeat(1));
        ack_of(probe.hear()).interval_ms == 200
    });
    let (_silent, _) = server.open(ChannelKind::Signal, Some(server.pki.agent("s", 4)), 1);
    let (mut alive, _) = server.open(ChannelKind::Signal, Some(server.pki.agent("l", 5)), 1);
    let begun = Instant::now();
    let lost = std::thread::scope(|scope| {
        let beating = scope.spawn(|| {
            for sequence in 0..15 {
                alive.say(heartbeat(sequence));
                ack_of(alive.hear());
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let lost = control.session_down("s");
        beating.join().unwrap();
        lost
    });
    assert_eq!(lost.reason, "lost");
    assert!(begun.elapsed() >= Duration::from_millis(700));
    server.process.stop().unwrap();
}
