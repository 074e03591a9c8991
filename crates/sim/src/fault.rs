//! Faults: what goes wrong when the plan says so, and is healed.

use crate::plan::{FaultKind, KillPoint};
use crate::world::{Event, SYNC_TAKES_US, TICK_US, World};

impl World<'_> {
    pub(crate) fn fault(&mut self, fault: usize) {
        if self.is_quiet {
            return;
        }
        let kind = self.plan.faults[fault].kind;
        self.say(|world| format!("fault {fault}: {}", world.plan.faults[fault]));
        let for_ms = match kind {
            FaultKind::Cut { a, b, late, for_ms } => {
                self.network.block(a, b);
                self.network.block(b, a);
                self.break_links(a, b, late);
                Some(for_ms)
            }
            FaultKind::OneWay { from, to, for_ms } => {
                self.network.block(from, to);
                Some(for_ms)
            }
            FaultKind::Partition { regions, for_ms } => {
                for (from, to) in self.crossing(regions) {
                    self.network.block(from, to);
                }
                Some(for_ms)
            }
            FaultKind::Slow { from, to, extra_ms, for_ms } => {
                self.network.delay(from, to, (extra_ms * 1_000) as i64);
                Some(for_ms)
            }
            FaultKind::Kill { region, point: KillPoint::Idle, down_ms } => {
                self.kill(region, down_ms);
                None
            }
            FaultKind::Kill { region, point, down_ms } => {
                self.regions[region].kill = Some((point, down_ms));
                let life = self.regions[region].life;
                self.at(self.now_us + 500_000, Event::KillIdle(region, life));
                None
            }
            FaultKind::Stop { region, down_ms } => {
                self.stop(region, down_ms);
                None
            }
            FaultKind::Crash { region, tail, down_ms } => {
                self.crash(region, tail, down_ms);
                None
            }
            FaultKind::FsyncFails { region, down_ms } => {
                self.fail_sync(region, down_ms);
                None
            }
            FaultKind::DiskFull { region, for_ms } => {
                self.set_full(region, true);
                Some(for_ms)
            }
            FaultKind::SlowDisk { region, sync_ms, for_ms } => {
                self.regions[region].sync_us = sync_ms * 1_000;
                Some(for_ms)
            }
            FaultKind::Clock { region, by_ms, for_ms } => {
                self.set_clock(region, self.regions[region].skew_us + by_ms * 1_000);
                Some(for_ms)
            }
            FaultKind::Evict { region, is_alive, after_ms, .. } => {
                if !is_alive {
                    self.lose(region);
                }
                self.at(self.now_us + after_ms * 1_000, Event::Evict(fault));
                None
            }
            FaultKind::Restore { region, after_ms, .. } => {
                self.back_up(fault, region);
                self.at(self.now_us + after_ms * 1_000, Event::Restore(fault));
                None
            }
            FaultKind::RollBack { region, records, down_ms } => {
                if !self.roll_back(region, records, down_ms) {
                    self.at(self.now_us + TICK_US, Event::Fault(fault));
                }
                None
            }
        };
        if let Some(for_ms) = for_ms {
            self.at(self.now_us + for_ms * 1_000, Event::Heal(fault));
        }
    }

    pub(crate) fn heal(&mut self, fault: usize) {
        if self.is_quiet {
            return;
        }
        self.say(|_| format!("fault {fault} is over"));
        match self.plan.faults[fault].kind {
            FaultKind::Cut { a, b, .. } => {
                self.unblock(a, b);
                self.unblock(b, a);
            }
            FaultKind::OneWay { from, to, .. } => self.unblock(from, to),
            FaultKind::Partition { regions, .. } => {
                for (from, to) in self.crossing(regions) {
                    self.unblock(from, to);
                }
            }
            FaultKind::Slow { from, to, extra_ms, .. } => {
                self.network.delay(from, to, -((extra_ms * 1_000) as i64));
            }
            FaultKind::DiskFull { region, .. } => self.set_full(region, false),
            FaultKind::SlowDisk { region, .. } => self.regions[region].sync_us = SYNC_TAKES_US,
            FaultKind::Clock { region, by_ms, .. } => {
                self.set_clock(region, self.regions[region].skew_us - by_ms * 1_000);
            }
            _ => {}
        }
    }

    /// Clients stop, and nothing goes wrong any more.
    pub(crate) fn heal_all(&mut self) {
        self.say(|_| "everything is healed".to_owned());
        self.is_quiet = true;
        self.network.reset(&self.plan.delay_ms);
        for from in 0..self.plan.regions {
            self.set_clock(from, self.plan.skew_us[from]);
            self.regions[from].sync_us = SYNC_TAKES_US;
            self.regions[from].kill = None;
            self.set_full(from, false);
            for to in 0..self.plan.regions {
                self.resume(from, to);
            }
        }
    }

    fn set_clock(&mut self, region: usize, skew_us: i64) {
        let region = &mut self.regions[region];
        if skew_us < region.skew_us {
            region.set_back_us = Some(self.now_us);
        }
        region.skew_us = skew_us;
    }

    fn unblock(&mut self, from: usize, to: usize) {
        self.network.unblock(from, to);
        self.resume(from, to);
    }

    /// What was held up in a direction arrives now.
    fn resume(&mut self, from: usize, to: usize) {
        if !self.network.is_blocked(from, to) {
            for (connection, pipe, count) in self.network.waiting(from, to) {
                (0..count).for_each(|_| self.at(self.now_us, Event::Arrive(connection, pipe)));
            }
        }
    }

    fn crossing(&self, regions: u32) -> Vec<(usize, usize)> {
        let inside = |region: usize| regions >> region & 1 == 1;
        let all = (0..self.plan.regions).flat_map(|from| (0..self.plan.regions).map(move |to| (from, to)));
        all.filter(|(from, to)| inside(*from) != inside(*to)).collect()
    }

    fn break_links(&mut self, a: usize, b: usize, late: bool) {
        for (end, other, notices) in [(a, b, true), (b, a, !late)] {
            let name = self.names[other].clone();
            if let (true, Some(process)) = (notices, &mut self.regions[end].process)
                && let Some(link) = process.store.engine.link(&name)
            {
                process.store.engine.lost(&name, link);
                if !late {
                    self.network.forget(link);
                }
                self.end_turn(end);
            }
        }
    }
}
