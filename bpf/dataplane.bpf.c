// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tc")
int vippin_egress(struct __sk_buff *skb)
{
	return 0;
}
SEC("tc")
int vippin_ingress(struct __sk_buff *skb)
{
	return 0;
}
