// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

//go:build ignore

/* For kernels without BTF: netfilter tells the programs what conntrack knows. */
#include "marks.h"
#include "programs.h"
