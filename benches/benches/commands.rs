//! Signing a dispatch and verifying one command of it.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use skein_wire::command::{Signer, Verifier};
use skein_wire::ids::AgentId;
use skein_wire::prost::Message;
use skein_wire::signal::v1::{CommandBody, RunTask, ServerMessage, command_body, server_message};

fn commands(criterion: &mut Criterion) {
    let random = SystemRandom::new();
    let key = Ed25519KeyPair::generate_pkcs8(&random).expect("randomness");
    let signer = Signer::from_pkcs8(1, key.as_ref()).expect("a fresh key");
    let verifier = Verifier::new(vec![signer.public()]);
    let script = RunTask { script: vec![b'x'; 1024].into(), ..Default::default() };
    let body = CommandBody {
        command_id: vec![0; 16].into(),
        kind: Some(command_body::Kind::RunTask(script)),
    };
    let mut group = criterion.benchmark_group("dispatch");
    for count in [1usize, 1_000, 20_000] {
        let agents: Vec<AgentId> = (0..count)
            .map(|index| AgentId::parse(&format!("agent-{index:06}")).expect("letters"))
            .collect();
        group.throughput(Throughput::Elements(count as u64));
        group.bench_with_input(BenchmarkId::new("sign", count), &agents, |b, agents| {
            b.iter(|| signer.dispatch(&body, 1, agents, &random).expect("signs"));
        });
        let dispatch = signer.dispatch(&body, 1, &agents, &random).expect("signs");
        let bytes = [&dispatch.common[..], &dispatch.extras[count / 2]].concat();
        let message = ServerMessage::decode(&bytes[..]).expect("own encoding");
        let Some(server_message::Kind::Command(command)) = message.kind else { unreachable!() };
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("verify one of", count), |b| {
            b.iter(|| verifier.verify(&agents[count / 2], &command, 0).expect("ours"));
        });
    }
    group.finish();
}

criterion_group!(benches, commands);
criterion_main!(benches);
