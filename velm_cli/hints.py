"""What people call an option who know other tools, and what velm calls it: data for "did you mean".

No epochs, no models and no GPUs are options here, so a word that others use would meet a list of all options.
"""

from __future__ import annotations

from velm_cli.options import choice_groups, options_of

# Option or group of velm -> words of other tools for it.
WORDS = {
    "optim.lr": "lr learning_rate learningrate base_lr max_lr",
    "optim.weight_decay": "wd weightdecay",
    "optim.schedule": "scheduler lr_scheduler lr_scheduler_type lr_schedule",
    "optim.warmup_steps": "warmup warmup_steps num_warmup_steps",
    "optim.grad_clip": "clip_grad max_grad_norm gradient_clip_val clip_grad_norm",
    "run.max_steps": "steps num_steps total_steps iterations iters max_iter max_iters max_iterations",
    "run.batch_size": "batch_size batch bs train_batch_size per_device_train_batch_size micro_batch_size batchsize",
    "run.accumulation": "grad_accum gradient_accumulation_steps accumulate_grad_batches accum accum_freq",
    "run.device": "device cuda accelerator",
    "run.precision": "fp16 bf16 amp mixed_precision dtype torch_dtype",
    "run.checkpoint_activations": "gradient_checkpointing activation_checkpointing grad_checkpointing",
    "run.dir": "output_dir out_dir outdir output save_dir logdir log_dir logs",
    "run.ema_decay": "ema",
    "run.patience": "early_stopping early_stopping_patience",
    "run.checkpoint_every": "save_steps save_every save_interval save_frequency",
    "run.validate_every": "eval_steps eval_every eval_interval val_check_interval",
    "run.log_every": "logging_steps log_interval log_every_n_steps",
    "name": "run_name exp_name experiment_name",
    "seed": "random_seed rng_seed manual_seed",
    "fresh": "overwrite overwrite_output_dir force restart",
    "data.workers": "num_workers dataloader_num_workers",
    "dataset.root": "data_dir data_path data_root image_dir image_root img_dir images images_dir root",
    "dataset.file": "train_data train_file annotations annotation_file captions",
    "vision": "model encoder image_encoder vision_model vision_tower backbone arch network",
    "text": "decoder text_encoder text_model language_model llm lm",
    "vision.image_size": "img_size image_size resolution input_size",
    "vision.tiles": "do_image_splitting image_splitting max_tiles num_tiles",
    "fusion.shuffle": "pixel_shuffle pixel_shuffle_factor mp_pixel_shuffle_factor scale_factor",
    "text.quantize": "load_in_4bit qlora quantization bits",
    "text.lora_alpha": "lora_alpha",
    "text.lora_targets": "lora_targets target_modules lora_target_modules",
    "text.lora_rank": "lora lora_r lora_rank",
    "decode.beams": "num_beams beam_size beam beams n_beams",
    "decode.max_length": "max_new_tokens max_len max_seq_len max_seq_length",
    "decode.min_length": "min_new_tokens min_len",
    "decode.samples": "num_return_sequences num_captions n_captions num_samples",
    "decode.no_repeat_ngram": "no_repeat_ngram_size ngram_size",
    "decode.repetition_penalty": "rep_penalty",
    "tokenizer.max_tokens": "max_caption_length caption_length",
    "checkpoint": "ckpt checkpoint_path ckpt_path load_from model_path pretrained resume_from weights run",
}
# Words that no option stands for -> what is done instead.
INSTEAD = {
    "epochs epoch num_epochs num_train_epochs max_epochs n_epochs": "no epochs here: an epoch is one step for every "
    "run.batch_size x run.accumulation images; say how many steps with run.max_steps=N",
    "gpus gpu num_gpus n_gpu n_gpus devices nproc_per_node ngpu": "several GPUs: torchrun --nproc-per-node=N "
    "--no-python velm train ...; which ones: CUDA_VISIBLE_DEVICES=0,1; one or none: run.device=cuda or cpu",
    "optimizer optimiser": "the optimiser is AdamW; its options are optim.lr, optim.weight_decay ...",
    "report_to logger loggers tracker trackers log_with": "figures go to metrics.jsonl in the run's folder, and "
    "with run.tensorboard=true, run.wandb=true or run.mlflow=true to a tracker",
    "resume resume_from_checkpoint auto_resume": "the same command again resumes by itself",
}  # fmt: skip
_OPTION_OF = {word: option for option, words in WORDS.items() for word in words.split()}
_INSTEAD_OF = {word: advice for words, advice in INSTEAD.items() for word in words.split()}


def instead_of(key: str, stage: str, value: str = "") -> str:
    """What to type instead of an option that the stage has not: "did you mean 'optim.lr'?"; "" if unknown.

    With `value`, as a word of the command: "did you mean optim.lr=VALUE?".
    """
    word = key.rpartition(".")[2].lower().replace("-", "_")
    options = options_of(stage)
    spelled = key.lower().replace("-", "_")
    known = _OPTION_OF.get(word)
    if spelled != key and spelled in options:
        found = [spelled]
    elif word in _INSTEAD_OF and "run" in choice_groups(stage):
        return _INSTEAD_OF[word]
    elif known is not None and known != key and (known in options or known in choice_groups(stage)):
        found = [known]
    else:
        found = [option for option in options if option.rpartition(".")[2] == word and option != key]
    if not 0 < len(found) <= 4:
        return ""
    return f"did you mean {' or '.join(f'{one}={value}' if value else repr(one) for one in found)}?"
