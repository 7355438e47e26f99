//! The measurements, one function each. Every function opens its models, takes its rounds in turns
//! with the peers, and closes them again.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Map, Value, json};
use weighbridge_bench::Result;
use weighbridge_bench::machine::{Memory, memory};
use weighbridge_bench::report::{Comparison, Peer, Report};
use weighbridge_bench::series::Series;
use weighbridge_core::{Likelihood, Registry};

use crate::goals;
use crate::ours::Ours;
use crate::peers::{Peers, Rates};
use crate::workload::{Draw, N_FULL_PROMPT_TOKENS, N_OPTIONS};

/// Provider ids.
const LLAMA_CPP: &str = "llama-cpp";
const CANDLE: &str = "candle";

/// A part of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// What a loaded model takes of memory.
    Memory,
    /// One stream, llama-cpp.
    Single,
    /// Several streams with prompts of their own, llama-cpp.
    Batch,
    /// Requests that share a prefix, llama-cpp.
    Load,
    /// Multiple choice with few shots, llama-cpp.
    Choice,
    /// candle beside llama.cpp.
    Candle,
    /// candle beside stock candle-transformers.
    Stock,
    /// Deterministic mode, and how far the batched mode is from it.
    Deviation,
}

impl Section {
    /// The models it takes, the one that tells most in the least time first.
    fn models(self) -> &'static [&'static str] {
        match self {
            Self::Memory => &["qwen2-896-q8_0"],
            Self::Single => &[
                "smol-135m-q4_0",
                "smol-135m-q8_0",
                "smol-135m-q4_k",
                "qwen2-896-q4_0",
                "qwen2-896-q8_0",
                "qwen2-896-q4_k",
            ],
            Self::Batch => &["smol-135m-q4_0"],
            Self::Load | Self::Choice => &["smol-135m-q4_0", "qwen2-896-q4_0"],
            Self::Candle => &["qwen2-1024-q8_0", "qwen2-1024-q4_k"],
            Self::Stock => &["qwen2-896-q8_0", "qwen2-896-q4_0", "qwen2-1024-q4_0"],
            Self::Deviation => &["smol-135m-q8_0"],
        }
    }
}

/// How much is measured.
#[derive(Debug)]
pub(crate) struct Sizes {
    /// Models of each part.
    pub(crate) n_models: usize,
    pub(crate) n_rounds: usize,
    pub(crate) n_prompt: usize,
    pub(crate) n_generated: usize,
    pub(crate) n_requests: usize,
    /// Of them, those that a server without a cache is asked; each takes as long as any other.
    pub(crate) n_uncached_requests: usize,
    pub(crate) n_questions: usize,
    /// Questions whose options are scored with full prompts; each takes as long as any other.
    pub(crate) n_lone_questions: usize,
}

impl Sizes {
    pub(crate) fn full(n_rounds: usize) -> Self {
        Self {
            n_models: usize::MAX,
            n_rounds,
            n_prompt: 512,
            n_generated: 128,
            n_requests: 64,
            n_uncached_requests: 16,
            n_questions: 40,
            n_lone_questions: 5,
        }
    }

    /// To see that everything works; the numbers mean little.
    pub(crate) fn quick() -> Self {
        Self {
            n_models: 1,
            n_rounds: 1,
            n_prompt: 128,
            n_generated: 16,
            n_requests: 8,
            n_uncached_requests: 2,
            n_questions: 4,
            n_lone_questions: 1,
        }
    }
}

/// Everything that the sections need.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) registry: Registry,
    pub(crate) models: PathBuf,
    pub(crate) peers: Option<Peers>,
    /// Beginning of the names of the models that are measured.
    pub(crate) only_model: Option<String>,
    pub(crate) n_threads: usize,
    pub(crate) sizes: Sizes,
    pub(crate) draw: Draw,
    pub(crate) report: Report,
}

/// Slots that llama-server batches best with on a few cores.
const N_SLOTS: usize = 16;
/// Tokens of a request of the evaluation load.
const N_SHARED: usize = 512;
const N_OWN: usize = 64;
const N_ANSWER: usize = 32;

impl Bench {
    /// Runs one section.
    pub(crate) fn run(&mut self, section: Section) -> Result<()> {
        let mut models = section.models().to_vec();
        if let Some(only) = &self.only_model {
            models.retain(|model| model.starts_with(only));
        }
        models.truncate(self.sizes.n_models);
        for model in models {
            match section {
                Section::Memory => self.memory(model),
                Section::Single => {
                    self.beside_llama_bench(LLAMA_CPP, model, (goals::PREFILL, goals::DECODE))
                }
                Section::Batch => self.batch(model),
                Section::Load => self.load(model),
                Section::Choice => self.choice(model),
                Section::Candle => {
                    let goals = (goals::CANDLE_PREFILL, goals::CANDLE_DECODE);
                    self.beside_llama_bench(CANDLE, model, goals)
                }
                Section::Stock => self.beside_stock(model),
                Section::Deviation => {
                    self.deviation(LLAMA_CPP, model)?;
                    self.deviation(CANDLE, model)
                }
            }?;
        }
        Ok(())
    }

    fn file(&self, model: &str) -> PathBuf {
        self.models.join(format!("{model}.gguf"))
    }

    fn open(&mut self, provider: &str, model: &str) -> Result<Ours> {
        self.open_with(provider, model, Map::new())
    }

    fn open_with(
        &mut self,
        provider: &str,
        model: &str,
        mut options: Map<String, Value>,
    ) -> Result<Ours> {
        if provider == LLAMA_CPP {
            options.insert("threads".to_owned(), self.n_threads.into());
        }
        let ours = Ours::open(&self.registry, provider, &self.file(model), options)?;
        if let Some(engine) = ours.engine() {
            self.report.note(provider, serde_json::to_value(engine)?)?;
        }
        ours.warm_up(&self.draw.tokens(self.sizes.n_prompt))?;
        Ok(ours)
    }

    fn memory(&mut self, model: &str) -> Result<()> {
        let file = self.file(model).canonicalize()?;
        let before = memory(&file);
        // Few positions, so that keys and values do not hide a copy of the weights.
        let n_positions = json!({ "n_ctx": 1024, "n_ctx_total": 1024 });
        let options = n_positions.as_object().cloned().unwrap_or_default();
        let ours = self.open_with(LLAMA_CPP, model, options)?;
        let after = memory(&file);
        ours.close()?;
        let (Some(before), Some(after)) = (before, after) else {
            let reason = json!({ "not measured": "there is no /proc/self/smaps" });
            return self.report.find(model, "memory", &reason, None);
        };
        let Memory { anonymous, mapped, mapped_copies } = after;
        let values = json!({
            "file_bytes": file.metadata()?.len(),
            "mapped_bytes": mapped,
            "mapped_bytes_copied": mapped_copies,
            "other_bytes_more_than_before": anonymous.saturating_sub(before.anonymous),
        });
        let is_shared = mapped > 0 && mapped_copies == 0;
        self.report.find(model, "memory: weights are mapped, not copied", &values, Some(is_shared))
    }

    /// Prefill and decode of one stream, in turns with llama-bench.
    fn beside_llama_bench(&mut self, provider: &str, model: &str, goals: (f64, f64)) -> Result<()> {
        self.one_stream(provider, model, "llama-bench", goals, Peers::llama_bench)
    }

    fn beside_stock(&mut self, model: &str) -> Result<()> {
        let goals = (goals::STOCK_PREFILL, goals::STOCK_DECODE);
        self.one_stream(CANDLE, model, "stock candle-transformers", goals, Peers::stock_candle)
    }

    fn one_stream(
        &mut self,
        provider: &str,
        model: &str,
        peer: &str,
        goals: (f64, f64),
        measure_peer: fn(&Peers, &Path, usize, usize) -> Result<Rates>,
    ) -> Result<()> {
        let ours = self.open(provider, model)?;
        let Sizes { n_rounds, n_prompt, n_generated, .. } = self.sizes;
        let [mut prefill, mut decode, mut peer_prefill, mut peer_decode] =
            [const { Series::empty() }; 4];
        for _ in 0..n_rounds {
            prefill.push(ours.prefill(&self.draw.tokens(n_prompt))?);
            decode.push(ours.decode(&self.draw.tokens(n_prompt), n_generated)?);
            if let Some(peers) = &self.peers {
                let rates = measure_peer(peers, &self.file(model), n_prompt, n_generated)?;
                peer_prefill.push(rates.prefill);
                peer_decode.push(rates.decode);
            }
        }
        ours.close()?;
        for (what, rates, peer_rates, goal) in [
            (format!("prefill of {n_prompt} tokens"), prefill, peer_prefill, goals.0),
            (format!("decode of {n_generated} tokens"), decode, peer_decode, goals.1),
        ] {
            let peers = self.peers.iter().map(|_| Peer::new(peer, peer_rates.clone(), goal));
            self.report.compare(Comparison {
                what,
                model: model.to_owned(),
                unit: "tokens/s",
                ours: (provider.to_owned(), rates),
                peers: peers.collect(),
            })?;
        }
        Ok(())
    }

    /// Streams with prompts of their own, in turns with llama-batched-bench.
    fn batch(&mut self, model: &str) -> Result<()> {
        const N_PROMPT: usize = 128;
        const N_GENERATED: usize = 64;
        let ours = self.open(LLAMA_CPP, model)?;
        for n_sequences in [4, N_SLOTS] {
            let [mut rates, mut peer_rates] = [const { Series::empty() }; 2];
            for _ in 0..self.sizes.n_rounds {
                let prompts = self.draw.sharing(n_sequences, 0, N_PROMPT);
                let (wall, _) = ours.generate_all(&prompts, N_GENERATED)?;
                let n_tokens = n_sequences * (N_PROMPT + N_GENERATED);
                rates.push(n_tokens as f64 / wall.as_secs_f64());
                if let Some(peers) = &self.peers {
                    let file = self.file(model);
                    let rate = peers.batched_bench(&file, n_sequences, N_PROMPT, N_GENERATED)?;
                    peer_rates.push(rate);
                }
            }
            let peers = self
                .peers
                .iter()
                .map(|_| Peer::new("llama-batched-bench", peer_rates.clone(), None));
            self.report.compare(Comparison {
                what: format!(
                    "{n_sequences} streams of {N_PROMPT} tokens and {N_GENERATED} generated"
                ),
                model: model.to_owned(),
                unit: "tokens/s",
                ours: (LLAMA_CPP.to_owned(), rates),
                peers: peers.collect(),
            })?;
        }
        ours.close()
    }

    /// The load of an evaluation, in turns with llama-server.
    fn load(&mut self, model: &str) -> Result<()> {
        let ours = self.open(LLAMA_CPP, model)?;
        let Sizes { n_requests, n_uncached_requests, .. } = self.sizes;
        let per_slot = N_SHARED + N_OWN + N_ANSWER;
        let servers = match &self.peers {
            Some(peers) => Some((
                peers.server(&self.file(model), N_SLOTS, N_SLOTS * per_slot)?,
                peers.server(&self.file(model), 1, per_slot)?,
            )),
            None => None,
        };
        let mut rates = Series::empty();
        let [mut slots, mut one_slot, mut no_cache] = [const { Series::empty() }; 3];
        for _ in 0..self.sizes.n_rounds {
            let prompts = self.draw.sharing(n_requests, N_SHARED, N_OWN);
            let (wall, _) = ours.generate_all(&prompts, N_ANSWER)?;
            rates.push(n_requests as f64 / wall.as_secs_f64());
            let Some((many, one)) = &servers else { continue };
            for (server, caches_prompts, prompts, rates) in [
                (many, true, &prompts[..], &mut slots),
                (one, true, &prompts[..], &mut one_slot),
                (one, false, &prompts[..n_uncached_requests], &mut no_cache),
            ] {
                let wall = server.generate_all(prompts, N_ANSWER, caches_prompts)?;
                rates.push(prompts.len() as f64 / wall.as_secs_f64());
            }
        }
        drop(servers);
        ours.close()?;
        let peers = match &self.peers {
            Some(_) => vec![
                Peer::new(format!("llama-server, {N_SLOTS} slots"), slots, goals::LOAD_SLOTS),
                Peer::new("llama-server, one slot", one_slot, goals::LOAD_ONE_SLOT),
                Peer::new("llama-server, one slot, no cache", no_cache, goals::LOAD_NO_CACHE),
            ],
            None => Vec::new(),
        };
        self.report.compare(Comparison {
            what: format!(
                "{n_requests} requests, {N_SHARED} shared and {N_OWN} own tokens, {N_ANSWER} \
                 generated"
            ),
            model: model.to_owned(),
            unit: "requests/s",
            ours: (LLAMA_CPP.to_owned(), rates),
            peers,
        })
    }

    /// Multiple choice behind few shots, in turns with scoring every option with a full prompt:
    /// by ourselves, and by the rate at which llama-bench reads prompts.
    fn choice(&mut self, model: &str) -> Result<()> {
        let ours = self.open(LLAMA_CPP, model)?;
        let Sizes { n_rounds, n_questions, n_lone_questions, .. } = self.sizes;
        let [mut rates, mut full_prompts, mut llama_bench] = [const { Series::empty() }; 3];
        for _ in 0..n_rounds {
            let (wall, _) = ours.score_all(self.draw.questions(n_questions), false)?;
            rates.push((n_questions * N_OPTIONS) as f64 / wall.as_secs_f64());
            let (wall, _) = ours.score_all(self.draw.lone_options(n_lone_questions), false)?;
            full_prompts.push((n_lone_questions * N_OPTIONS) as f64 / wall.as_secs_f64());
            if let Some(peers) = &self.peers {
                let n_prompt = N_FULL_PROMPT_TOKENS.round() as usize;
                let rate = peers.llama_bench(&self.file(model), n_prompt, 1)?.prefill;
                llama_bench.push(rate / N_FULL_PROMPT_TOKENS);
            }
        }
        ours.close()?;
        let mut peers = vec![Peer::new("each with its full prompt", full_prompts, goals::CHOICE)];
        if self.peers.is_some() {
            peers.push(Peer::new("the same at llama-bench's prefill", llama_bench, None));
        }
        self.report.compare(Comparison {
            what: format!("{n_questions} questions of {N_OPTIONS} options behind 5 shots"),
            model: model.to_owned(),
            unit: "options/s",
            ours: (LLAMA_CPP.to_owned(), rates),
            peers,
        })
    }

    /// Repeats deterministic calls, and compares the batched mode with them.
    fn deviation(&mut self, provider: &str, model: &str) -> Result<()> {
        const N_ITEMS: usize = 16;
        const N_SCORED: usize = 32;
        let ours = self.open(provider, model)?;
        let contexts = self.draw.sharing(N_ITEMS, 128, 32);
        let items: Vec<_> =
            contexts.into_iter().map(|c| vec![self.draw.item(c, N_SCORED)]).collect();
        let first = logprobs(&ours.score_all(items.clone(), true)?.1);
        let again = logprobs(&ours.score_all(items.clone(), true)?.1);
        let batched = logprobs(&ours.score_all(items, false)?.1);

        let prompt = self.draw.tokens(64);
        let texts = [(); 2].map(|()| ours.generate_deterministic(&prompt, N_SCORED));
        let [Ok(text), Ok(text_again)] = texts else {
            return Err("a deterministic generation failed".into());
        };
        ours.close()?;

        let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let repeats = bits(&first) == bits(&again)
            && text.text == text_again.text
            && text.logprobs == text_again.logprobs;
        let gaps: Vec<f64> = first.iter().zip(&batched).map(|(a, b)| (a - b).abs()).collect();
        let values: Value = json!({
            "n_tokens": gaps.len(),
            "max_abs_logprob_difference": gaps.iter().copied().fold(0.0, f64::max),
            "mean_abs_logprob_difference": gaps.iter().sum::<f64>() / gaps.len() as f64,
        });
        let what = format!(
            "{provider}: deterministic mode repeats bit for bit; the batched mode is this far from it"
        );
        self.report.find(model, &what, &values, Some(repeats))
    }
}

fn logprobs(likelihoods: &[Likelihood]) -> Vec<f64> {
    likelihoods.iter().flat_map(|l| &l.tokens).filter_map(|token| token.logprob).collect()
}
