//! `weighbridge try`.

use std::ops::ControlFlow;
use std::sync::Arc;

use clap::Args;
use weighbridge::{
    Backend, Egress, EgressScope, Event, ModelRef, OpenContext, Request, Result, block_on,
    plan::Ledger,
};

use crate::keys::{KeyArgs, tell};

#[derive(Args)]
pub(crate) struct TryArgs {
    /// The model, as PROVIDER:LOCATION, for instance candle:models/my-model or
    /// openai-compatible:http://127.0.0.1:8080/v1#my-model
    model: String,
    /// The user message
    prompt: String,
    /// Tokens to generate at most
    #[arg(long, default_value_t = 256)]
    max_tokens: u32,
    /// Open no connection at all: only models that run in this process
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    keys: KeyArgs,
}

pub(crate) fn run(args: &TryArgs) -> Result<()> {
    let backend = open(&args.model, args.offline, &args.keys)?;
    let request = Request::user(&args.prompt).with_max_tokens(args.max_tokens);
    let mut printed = Ok(());
    let mut sink = |event: Event<'_>| {
        if let Event::Text(text) = event {
            // What a model says must not steer the terminal.
            let text: String = text
                .chars()
                .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
                .collect();
            printed = crate::print(&text);
        }
        match printed {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let completion = block_on(backend.generate(&request, &mut sink))?;
    printed?;
    crate::print("\n")?;
    eprintln!(
        "[{}, {} prompt and {} generated tokens, {:.0} ms]",
        completion.stop_reason.as_str(),
        completion.usage.n_prompt_tokens.map_or("?".into(), |n| n.to_string()),
        completion.usage.n_generated_tokens.map_or("?".into(), |n| n.to_string()),
        completion.timings.total.as_secs_f64() * 1000.0
    );
    Ok(())
}

/// Opens one model by name.
pub(crate) fn open(model: &str, offline: bool, keys: &KeyArgs) -> Result<Arc<dyn Backend>> {
    let keys = keys.places()?;
    let environment = crate::environment(&keys)?;
    let model: ModelRef = model.parse()?;
    let provider = environment.registry.provider(&model.provider)?;
    let mut context = OpenContext::new().with_secrets(Arc::clone(&environment.secrets));
    if !offline && provider.describe().needs_egress {
        context =
            context.with_egress(Egress::grant(EgressScope::Network, Arc::new(Ledger::default())));
    }
    let backend = block_on(provider.open(&model, &context));
    tell(&keys);
    backend
}
