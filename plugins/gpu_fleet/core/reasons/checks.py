"""Reasons of a validation's checks that passed, or were left out: nothing is to be done about them."""

from __future__ import annotations

from gpu_fleet.core.reasons.reason import Effect, Reason, Section


def _passes(**found: str) -> tuple[Reason, ...]:
    return tuple(Reason(name, Effect.PASSES, words) for name, words in found.items())


def _skipped(**found: str) -> tuple[Reason, ...]:
    return tuple(Reason(name, Effect.CHECK_SKIPPED, words) for name, words in found.items())


PASSED = Section(
    "Checks that passed",
    "checks of nodes and pools, in reports",
    _passes(
        NodeReady="the node is Ready",
        RuntimeClassExists="the RuntimeClass exists",
        LabelsAsPromised="the node has the pool's labels",
        TaintsAsPromised="the node has the pool's taints",
        HardwareReady="the node monitoring agent reports no fault",
        OnePlugin="no second device plugin runs on the node",
        MpsDaemonReady="the MPS control daemon is Ready",
        PluginReady="the device plugin's pod is Ready",
        AllocatableAsPromised="allocatable is physical × replicas",
        Free="the node had room for all probes",
        DriverNewEnough="the driver is `validation.minimumDriver` or newer",
        AllReported="every probe left a report",
        ClocksAgree="no time stamp is off by more than 10 s",
        VectorAddPassed="vectorAdd passed in every container",
        OneGpuEach="every container sees exactly one GPU",
        NoneByTheirSpecs="no pod's spec shows it GPUs that it did not request",
        RanTogether="all sharers ran at the same time",
        AsPromised="the containers are distributed over the GPUs as promised",
        CountsAgree="nvidia-smi and EC2 agree on the number of GPUs",
        OneMoreWaits="one pod more than there is room for had to wait for a GPU",
        TwoSharesRefused="a request for two shares was refused",
        WholeGpu="every container sees the memory of its own GPU",
        NotIsolated="every sharer sees the GPU's whole memory, as time-slicing does",
        Limited="no MPS client may take more memory than its share",
        SharedFairly="every sharer got its fair share",
        LittleLost="the sharers together lose little against one alone",
        GpusAlike="no whole GPU is much slower than the others",
        DcgmPassed="DCGM's tests passed",
        Unchanged="the same NodeClaims exist before and after",
        OthersAskedForMore="new NodeClaims belong to users' pods, or replace nodes that were not under test",
        OthersTookAway="NodeClaims of nodes that were not under test disappeared, or EC2 took the instance away",
    ),
)

SKIPPED = Section(
    "Checks that were left out",
    "checks of nodes, in reports",
    _skipped(
        NotReached="a check that this one rests on did not pass",
        NotOurs="the NodePool or the device plugin is managed by others, or is part of the AMI",
        NonePromised="the pool has no taints, or is managed by others",
        NotMonitored="no node monitoring agent sets the condition `AcceleratedHardwareReady`",
        NotAsked="the spec does not ask for it",
        NoReport="no probe reported a driver version; see the check `probes` for the cause",
        OneAtATime="no GPU had room for two containers",
        NotShared="every container has a GPU of its own",
        Shared="the GPUs are shared",
        OthersFreedGpus="a user's pod ended meanwhile and made room for the pod that was to wait",
        RefusedOtherwise="the request for two shares was refused for another cause, which the message quotes",
        NotTried="the pod that requested two shares was never tried",
    ),
)
