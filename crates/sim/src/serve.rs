//! Requests: clients ask the region where they are, and are answered when what they saw is safe.

use std::collections::VecDeque;

use geode_crdt::{ActorId, HybridTime};
use geode_replica::Vector;
use geode_store::conformance::oracle::Command;
use geode_store::conformance::{Recorder, Value};
use geode_store::{Engine, Flow, Position, Session, Store, View};

use crate::engine::SimEngine;
use crate::plan::KillPoint;
use crate::workload::{Ask, Request};
use crate::world::World;

/// How often a session's token is looked at again, and how many times: half a second, as a door does.
const TOKEN_US: u64 = 20_000;
const TOKEN_WAITS: u32 = 25;
/// How long a client waits for an answer.
const PATIENCE_US: u64 = 4_000_000;
/// How long WAIT waits for other regions, in milliseconds.
const WAIT_MS: u64 = 600;

/// A request in a region.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) client: usize,
    pub(crate) number: u64,
    session: Session,
    rest: VecDeque<Vec<String>>,
    replies: Vec<Value>,
    /// Whether a command waits for other regions.
    is_parked: bool,
    position: Position,
    wrote: Vec<(ActorId, u64, HybridTime)>,
    /// Whether the region's clock is so far ahead that it writes nothing.
    refuses_writes: bool,
    /// Whether its last command is WAIT.
    waits: bool,
}

impl World<'_> {
    /// It is a client's turn.
    pub(crate) fn client(&mut self, number: usize) {
        if self.is_quiet || self.now_us + self.plan.rest_ms * 1_000 >= self.plan.length_ms * 1_000 {
            return;
        }
        if self.clients[number].asked.is_some() {
            if self.now_us >= self.clients[number].since_us + PATIENCE_US {
                self.say(|_| format!("client {number} has waited long enough"));
                self.counts.unknown += 1;
                self.clients[number].begin_anew();
            } else {
                return self.client_again(number, TOKEN_US);
            }
        }
        let Some(region) = self.place(number) else { return self.client_again(number, TOKEN_US) };
        if !self.covers(region, number) {
            return;
        }
        self.ask(region, number);
    }

    /// Where the client goes: home, or elsewhere if that is dead, and now and then anyhow.
    fn place(&mut self, number: usize) -> Option<usize> {
        let regions = self.plan.regions;
        let client = &mut self.clients[number];
        if client.waits == 0 {
            client.at = if client.script.random.one_in(4) {
                client.script.random.index(regions)
            } else {
                client.home
            };
        }
        let from = client.at;
        let at = (0..regions).map(|step| (from + step) % regions).find(|at| {
            let process = self.regions[*at].process.as_ref();
            // A region that has not heard of its peers yet, or is joining a snapshot, serves nobody.
            process.is_some_and(|process| process.first_write_us.is_none() && process.store.engine.is_whole())
        });
        self.clients[number].at = at.unwrap_or(from);
        at
    }

    /// Whether the region has all that the session saw. If not, the client asks again soon, and at last gives up.
    fn covers(&mut self, region: usize, number: usize) -> bool {
        if self.plant == Some(crate::Plant::IgnoredToken)
            || self.vector(region).includes(&self.clients[number].token)
        {
            self.clients[number].waits = 0;
            return true;
        }
        let is_lost = self.is_lost(region, number);
        let client = &mut self.clients[number];
        client.waits += 1;
        if is_lost || client.waits > TOKEN_WAITS {
            client.begin_anew();
            client.token = Vector::default();
            self.counts.stale += 1;
            self.say(|_| format!("client {number} gives up what it saw"));
        }
        self.client_again(number, TOKEN_US);
        false
    }

    fn ask(&mut self, region: usize, number: usize) {
        let clients = self.clients.len();
        self.requests += 1;
        let client = &mut self.clients[number];
        let ask = client.script.choose(clients, self.plan.keys);
        client.asked = Some(self.requests);
        client.ask = ask.clone();
        client.since_us = self.now_us;
        let wall = self.wall(region);
        let Some(process) = &mut self.regions[region].process else { return };
        process.store.engine.set_wall(wall);
        let lives = match &ask {
            Ask::Rate(key) => {
                let left = read(&mut process.store, 0, &format!("PTTL {key}"));
                matches!(left, Value::Integer(left) if left >= 0)
            }
            _ => false,
        };
        let other = if let Ask::ReadPair(other) = &ask { *other } else { 0 };
        let epoch = self.clients[other].script.epoch;
        let request = self.clients[number].script.request(&ask, (other, epoch), lives);
        let random = &mut self.clients[number].script.random;
        let waits = matches!(ask, Ask::Count | Ask::Transfer(_)) && random.one_in(2);
        self.serve(region, number, request, waits);
    }

    fn serve(&mut self, region: usize, client: usize, request: Request, waits: bool) {
        let mut rest: VecDeque<Vec<String>> = request.commands.into();
        if request.database != 0 {
            rest.push_front(vec!["SELECT".into(), request.database.to_string()]);
        }
        if waits {
            rest.push_back(vec!["WAIT".into(), "1".into(), WAIT_MS.to_string()]);
        }
        let mut pending = Pending {
            client,
            number: self.requests,
            session: Session::default(),
            rest,
            replies: Vec::new(),
            is_parked: false,
            position: Position(u64::MAX),
            wrote: Vec::new(),
            refuses_writes: false,
            waits,
        };
        let Some(process) = &mut self.regions[region].process else { return };
        let engine = &process.store.engine;
        pending.refuses_writes = engine.clock_ahead_ms().is_some() || engine.write_refusal().is_some();
        pending.run(&mut process.store);
        let wrote = std::mem::take(&mut process.store.engine.wrote);
        let time = process.store.engine.time;
        let oracle = if pending.refuses_writes { &[][..] } else { &request.oracle };
        self.record(region, oracle, request.database, &wrote, time);
        self.say(|world| {
            let ask = &world.clients[client].ask;
            let wrote: Vec<_> = wrote.iter().map(|entry| entry.sequence).collect();
            format!("client {client} asks {}: {ask:?}, entries {wrote:?}", world.names[region])
        });
        pending.wrote = wrote.into_iter().map(|entry| (entry.actor, entry.sequence, entry.time)).collect();
        let writes = !pending.wrote.is_empty();
        if self.answers_early() && !pending.is_parked {
            self.reply(region, &pending);
        }
        if writes
            && (self.kill_at(region, KillPoint::BeforeLog) || self.kill_at(region, KillPoint::WhileWriting))
        {
            return self.unanswered(client, pending.number);
        }
        let Some(process) = &mut self.regions[region].process else { return };
        match process.store.engine.flush() {
            Ok(position) => pending.position = position,
            Err(_) => {
                self.unanswered(client, pending.number);
                return self.fail_write(region);
            }
        }
        if writes && self.kill_at(region, KillPoint::BeforeAnswer) {
            return self.unanswered(client, pending.number);
        }
        if let Some(process) = &mut self.regions[region].process {
            process.pending.push(pending);
        }
        self.end_turn(region);
        if !request.oracle.is_empty() {
            self.check_keys(region);
        }
    }

    /// Tells the oracle what was written.
    fn record(
        &mut self,
        region: usize,
        oracle: &[Command],
        database: u8,
        wrote: &[crate::engine::Wrote],
        time: HybridTime,
    ) {
        self.counts.writes += wrote.len() as u64;
        wrote.iter().for_each(|entry| self.check_order(region, entry.time));
        if database != 0 {
            for entry in wrote {
                self.history.write_elsewhere(region, entry.time.0);
            }
            return;
        }
        let writes = self.history.write(region, time.0, oracle);
        if writes != (wrote.len() == 1) {
            let name = &self.names[region];
            self.violate("oracle", format!("{oracle:?} writes {} entries in {name}", wrote.len()));
        }
    }

    /// Answers whoever can be answered.
    pub(crate) fn answer(&mut self, region: usize) {
        let Some(process) = &mut self.regions[region].process else { return };
        let durable = process.store.engine.durable();
        let mut pending = std::mem::take(&mut process.pending);
        for waiting in pending.iter_mut().filter(|waiting| waiting.is_parked) {
            waiting.resume(&mut process.store);
        }
        let is_done = |waiting: &mut Pending| !waiting.is_parked && waiting.position <= durable;
        let done: Vec<Pending> = pending.extract_if(.., is_done).collect();
        process.pending = pending;
        for answered in done {
            self.reply(region, &answered);
        }
    }

    fn reply(&mut self, region: usize, answered: &Pending) {
        let number = answered.client;
        if self.clients[number].asked != Some(answered.number) {
            return;
        }
        let mut replies = answered.replies.clone();
        let confirmed = match (answered.waits, replies.last()) {
            (true, Some(Value::Integer(regions))) => {
                let confirmed = *regions >= 1;
                replies.pop();
                confirmed
            }
            _ => false,
        };
        for (actor, sequence, time) in &answered.wrote {
            self.acknowledged.insert((actor.clone(), *sequence), *time);
            if confirmed {
                self.confirmed.insert((actor.clone(), *sequence));
            }
        }
        self.counts.answers += 1;
        let vector = self.vector(region);
        let client = &mut self.clients[number];
        client.asked = None;
        let carried = vector.0.into_iter().filter(|_| !client.script.is_plain);
        for (actor, sequence) in carried {
            let seen = client.token.0.entry(actor).or_default();
            *seen = sequence.max(*seen);
        }
        let ask = client.ask.clone();
        let ask = if answered.refuses_writes && ask.writes() { Ask::Refused } else { ask };
        let objection = client.script.objection(&ask, &replies);
        client.script.answered(&ask);
        let think_us = client.script.random.below(client_think_us(self.plan.think_ms));
        self.say(|_| format!("client {number} is answered {}", shown(&replies)));
        if let Some((rule, message)) = objection {
            self.violate(rule, format!("client {number} in {}: {message}", self.names[region]));
        }
        self.client_again(number, think_us);
    }

    /// The client will not hear what became of its request.
    pub(crate) fn unanswered(&mut self, number: usize, request: u64) {
        if self.clients[number].asked == Some(request) {
            self.counts.unknown += 1;
            self.clients[number].begin_anew();
            self.say(|_| format!("client {number} does not know what became of its request"));
            self.client_again(number, TOKEN_US);
        }
    }

    /// What a region holds.
    pub(crate) fn vector(&self, region: usize) -> Vector {
        self.regions[region].process.as_ref().map_or_else(Vector::default, |process| {
            let engine = &process.store.engine;
            Vector::of(engine.replica.held(), engine.view().actors())
        })
    }
}

const fn client_think_us(think_ms: u64) -> u64 {
    2 * think_ms * 1_000
}

fn shown(replies: &[Value]) -> String {
    replies.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")
}

impl Pending {
    fn run(&mut self, store: &mut Store<SimEngine>) {
        while let Some(command) = self.rest.pop_front() {
            let words: Vec<&[u8]> = command.iter().map(String::as_bytes).collect();
            let mut reply = Recorder::default();
            let flow = store.execute(&mut self.session, &words, &mut reply);
            if !self.go_on(store, flow, reply) {
                return;
            }
        }
        // SELECT says nothing of interest.
        if self.session.database() != 0 && !self.replies.is_empty() {
            self.replies.remove(0);
        }
    }

    fn resume(&mut self, store: &mut Store<SimEngine>) {
        let mut reply = Recorder::default();
        let flow = store.resume(&mut self.session, &mut reply);
        if self.go_on(store, flow, reply) {
            self.run(store);
        }
    }

    /// Fetches rows until the command is answered or waits for other regions. Returns whether it was answered.
    fn go_on(&mut self, store: &mut Store<SimEngine>, mut flow: Flow, mut reply: Recorder) -> bool {
        while flow != Flow::Done && store.engine.complete_fetches() {
            flow = store.resume(&mut self.session, &mut reply);
        }
        self.is_parked = flow != Flow::Done;
        if !self.is_parked {
            let value = reply.finish().unwrap_or_else(Value::Error);
            self.replies.push(value);
        }
        !self.is_parked
    }
}

/// Runs one command that only reads.
pub(crate) fn read(store: &mut Store<SimEngine>, database: u8, line: &str) -> Value {
    let mut pending = Pending {
        client: 0,
        number: 0,
        session: Session::default(),
        rest: [format!("SELECT {database}"), line.to_owned()]
            .into_iter()
            .map(|line| line.split(' ').map(str::to_owned).collect())
            .collect(),
        replies: Vec::new(),
        is_parked: false,
        position: Position(0),
        wrote: Vec::new(),
        refuses_writes: false,
        waits: false,
    };
    pending.run(store);
    pending.replies.pop().unwrap_or(Value::Null)
}
